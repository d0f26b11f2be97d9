//! Memory for weights and caches, on large pages where the system offers them. Failed allocations are errors.

use crate::error::{Error, Result};

/// Bytes of a cache line, and of the widest vector: a vector that is not aligned lies in two lines, and reading it takes twice
/// as long.
pub const CACHE_LINE: usize = 64;
/// Maximum number of words in front of the first one in a line.
pub const ALIGN_SLACK: usize = CACHE_LINE / size_of::<u32>() - 1;

/// Words that a thread copies per task.
pub const COPY_CHUNK: usize = 1 << 16;

/// The size of a large page where there are any, in bytes.
#[cfg(target_os = "linux")]
const LARGE: usize = 2 << 20;

/// `count` zeros, with room for [`ALIGN_SLACK`] more, on large pages as far as whole ones fit in: a step that reads 80 MB
/// then needs 40 address translations instead of 20,000. Linux gives large pages only on request, and only to memory that
/// is not in use yet.
///
/// # Errors
/// [`Error::OutOfMemory`] for `what` if the system has no such memory.
pub fn zeros(what: &str, count: usize) -> Result<Vec<u32>> {
    let refused = || Error::memory(what, count.saturating_mul(size_of::<u32>()));
    let mut words: Vec<u32> = bytemuck::try_zeroed_vec(count.saturating_add(ALIGN_SLACK)).map_err(|()| refused())?;
    words.truncate(count);
    #[cfg(target_os = "linux")]
    ask_for_large(words.as_ptr().cast(), size_of_val(&words[..]));
    Ok(words)
}

/// An empty vector with room for `count` elements.
///
/// # Errors
/// As [`zeros`].
pub fn room<T>(what: &str, count: usize) -> Result<Vec<T>> {
    let mut all = Vec::<T>::new();
    let refused = |_| Error::memory(what, count.saturating_mul(size_of::<T>()));
    all.try_reserve_exact(count).map_err(refused)?;
    #[cfg(target_os = "linux")]
    ask_for_large(all.as_ptr().cast(), count * size_of::<T>());
    Ok(all)
}

/// Asks for large pages for `bytes` bytes of one allocation.
#[cfg(target_os = "linux")]
fn ask_for_large(from: *const u8, bytes: usize) {
    let start = from.addr().next_multiple_of(LARGE);
    let end = (from.addr() + bytes) / LARGE * LARGE;
    if start < end {
        // SAFETY: The range lies within the allocation, and this advice changes neither what memory holds nor who may use
        // it. Advice that is refused leaves small pages, which is correct, only slower.
        unsafe { libc::madvise(start as *mut libc::c_void, end - start, libc::MADV_HUGEPAGE) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_any_count_are_zeros_that_can_be_written() {
        for count in [0, 1, 1 << 19, (3 << 19) + 5] {
            let mut words = zeros("words", count).unwrap();
            assert!(words.len() == count && words.iter().all(|&w| w == 0));
            words.fill(7);
            assert!(words.iter().all(|&w| w == 7));
        }
    }

    /// Caches for a long context cost what is used of them.
    #[cfg(target_os = "linux")]
    #[test]
    fn zeros_take_memory_as_they_are_written() {
        let resident = || {
            let status = std::fs::read_to_string("/proc/self/status").unwrap();
            let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
            line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() / 1024
        };
        let before = resident();
        let mut words = zeros("words", 256 << 20).unwrap();
        words[100 << 20] = 1;
        assert_eq!(words[200 << 20], 0);
        let now = resident();
        // Other tests run beside this one.
        assert!(now < before + 512, "{now} MiB for 1 GiB that was not written, {before} before");
    }

    #[test]
    fn memory_that_no_system_has_is_an_error() {
        for count in [1 << 58, usize::MAX] {
            let errors = [zeros("the cache", count).map(|_| ()), room::<u64>("the cache", count).map(|_| ())];
            for error in errors.map(Result::unwrap_err) {
                assert!(matches!(&error, Error::OutOfMemory { what, .. } if what == "the cache"), "{error}");
            }
        }
    }
}
