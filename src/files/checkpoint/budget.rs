//! How much memory reading a file may take.

/// Bytes that reading any file may take besides as many as it has.
const FLOOR: u64 = 48 << 20;

/// The bytes that what a file describes may still take in memory: a small file that asks for much is a trap.
#[derive(Debug)]
pub(crate) struct FileBudget {
    all: u64,
    left: u64,
}

impl FileBudget {
    /// That of a file of so many bytes: as many again, and 48 MiB.
    pub(crate) fn of_file(bytes: usize) -> Self {
        let all = (bytes as u64).saturating_add(FLOOR);
        FileBudget { all, left: all }
    }

    /// Takes bytes off it, if so many are left.
    ///
    /// # Errors
    /// What all of it is.
    pub(crate) fn take(&mut self, bytes: u64) -> Result<(), u64> {
        self.left = self.left.checked_sub(bytes).ok_or(self.all)?;
        Ok(())
    }

    /// What is left of it.
    pub(crate) fn left(&self) -> u64 {
        self.left
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_ends_with_what_it_had() {
        let mut budget = FileBudget::of_file(100);
        assert_eq!(budget.take(FLOOR), Ok(()));
        assert_eq!(budget.take(101), Err(FLOOR + 100));
        assert_eq!((budget.left(), budget.take(100), budget.left()), (100, Ok(()), 0));
        assert_eq!(FileBudget::of_file(usize::MAX).left(), u64::MAX);
    }
}
