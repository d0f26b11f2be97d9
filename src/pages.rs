//! Memory for weights and caches, on large pages where the system offers them.

/// A cache line, and the widest vector, in bytes: one that begins elsewhere lies in two lines, and reading it takes twice
/// as long.
pub const LINE: usize = 64;
/// Most words in front of the first one in a line.
pub const SLACK: usize = LINE / size_of::<u32>() - 1;

/// Words that a thread moves at once where all share the work.
pub const PIECE: usize = 1 << 16;

/// The size of a large page where there are any, in bytes.
#[cfg(target_os = "linux")]
const LARGE: usize = 2 << 20;

/// `count` zeros, with room for [`SLACK`] more, on large pages as far as whole ones fit in: a step that reads 80 MB then needs 40 translations of
/// addresses for 20,000. Linux gives such pages only to memory that asks for them, and only where it is not yet used.
pub fn zeros(count: usize) -> Vec<u32> {
    let mut words = vec![0; count + SLACK];
    words.truncate(count);
    #[cfg(target_os = "linux")]
    ask_for_large(&words);
    words
}

#[cfg(target_os = "linux")]
fn ask_for_large(words: &[u32]) {
    let bytes = words.as_ptr_range();
    let start = (bytes.start as usize).next_multiple_of(LARGE);
    let end = bytes.end as usize / LARGE * LARGE;
    if start < end {
        // SAFETY: The range lies within `words`, and this advice changes neither what memory holds nor who may use it.
        // Advice that is refused leaves small pages, which is correct, only slower.
        unsafe { libc::madvise(start as *mut libc::c_void, end - start, libc::MADV_HUGEPAGE) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_any_count_are_zeros_that_can_be_written() {
        for count in [0, 1, 1 << 19, (3 << 19) + 5] {
            let mut words = zeros(count);
            assert!(words.len() == count && words.iter().all(|&w| w == 0));
            words.fill(7);
            assert!(words.iter().all(|&w| w == 7));
        }
    }
}
