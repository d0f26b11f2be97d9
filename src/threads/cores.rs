//! How many threads compute unless someone says otherwise: one for each physical core, of those with most performance where
//! the system tells which they are. What shares a core adds nothing to loops of vector instructions, and a step is as fast
//! as its slowest thread.

use std::thread;

/// The number of threads for this process: at most what it may use.
pub fn count() -> usize {
    let allowed = thread::available_parallelism().map_or(1, usize::from);
    system::cores().map_or(allowed, |cores| cores.clamp(1, allowed))
}

#[cfg(any(target_os = "linux", target_os = "android"))]
mod system {
    use std::collections::BTreeSet;
    use std::fs::read_to_string;
    use std::path::Path;

    /// Performance cores among the processors that this process may run on.
    pub fn cores() -> Option<usize> {
        let status = read_to_string("/proc/self/status").ok()?;
        let allowed = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?;
        cores_in(Path::new("/sys/devices"), &processors(allowed)?)
    }

    /// The numbers of a list such as `0-3,8`.
    fn processors(list: &str) -> Option<Vec<usize>> {
        /// More than any system has.
        const MAX: usize = 1 << 16;
        let mut all = Vec::new();
        for part in list.trim().split(',').filter(|part| !part.is_empty()) {
            let (from, to) = part.split_once('-').unwrap_or((part, part));
            let (from, to): (usize, usize) = (from.parse().ok()?, to.parse().ok()?);
            if to >= MAX {
                return None;
            }
            all.extend(from..=to);
        }
        Some(all)
    }

    /// Performance cores among the processors `allowed`, as the folder `devices` describes them; none where it does not.
    pub fn cores_in(devices: &Path, allowed: &[usize]) -> Option<usize> {
        let of = |n: usize, file: &str| read_to_string(devices.join(format!("system/cpu/cpu{n}/{file}"))).ok();
        let mut chosen = allowed.to_vec();
        // Intel's processors with two kinds of cores.
        let performance = read_to_string(devices.join("cpu_core/cpus")).ok().and_then(|list| processors(&list));
        if let Some(performance) = performance.filter(|p| p.iter().any(|n| allowed.contains(n))) {
            chosen.retain(|n| performance.contains(n));
        }
        // Arm's: what a core does in the time in which the largest does 1024. Those of the middle kind do more than half.
        let capacity = |n: &usize| of(*n, "cpu_capacity").and_then(|text| text.trim().parse::<u32>().ok());
        if let Some(capacities) = chosen.iter().map(capacity).collect::<Option<Vec<u32>>>() {
            let largest = capacities.iter().copied().max()?;
            let mut capacities = capacities.iter();
            chosen.retain(|_| capacities.next().is_none_or(|&c| c >= largest / 2));
        }
        let siblings =
            |n: &usize| of(*n, "topology/core_cpus_list").or_else(|| of(*n, "topology/thread_siblings_list"));
        let cores: BTreeSet<String> = chosen.iter().map(siblings).collect::<Option<_>>()?;
        (!cores.is_empty()).then_some(cores.len())
    }

    #[cfg(test)]
    mod tests {
        use super::*;
        use std::fs;

        /// A folder of processors: the list of siblings and the capacity of each.
        fn devices(processors: &[(&str, Option<u32>)], performance: Option<&str>) -> tempfile::TempDir {
            let dir = tempfile::tempdir().unwrap();
            for (n, (siblings, capacity)) in processors.iter().enumerate() {
                let cpu = dir.path().join(format!("system/cpu/cpu{n}"));
                fs::create_dir_all(cpu.join("topology")).unwrap();
                fs::write(cpu.join("topology/core_cpus_list"), format!("{siblings}\n")).unwrap();
                if let Some(capacity) = capacity {
                    fs::write(cpu.join("cpu_capacity"), format!("{capacity}\n")).unwrap();
                }
            }
            if let Some(list) = performance {
                fs::create_dir_all(dir.path().join("cpu_core")).unwrap();
                fs::write(dir.path().join("cpu_core/cpus"), format!("{list}\n")).unwrap();
            }
            dir
        }

        #[test]
        fn siblings_count_once_and_only_what_is_allowed() {
            let dir = devices(&[("0,2", None), ("1,3", None), ("0,2", None), ("1,3", None)], None);
            let cores = |allowed: &[usize]| cores_in(dir.path(), allowed);
            assert_eq!([cores(&[0, 1, 2, 3]), cores(&[1, 3]), cores(&[0, 1])], [Some(2), Some(1), Some(2)]);
            assert_eq!([cores(&[]), cores(&[7])], [None, None]);
        }

        #[test]
        fn performance_cores_come_first_where_there_are_any() {
            // Two cores with two threads each, and three small ones.
            let all =
                [("0-1", None), ("0-1", None), ("2-3", None), ("2-3", None), ("4", None), ("5", None), ("6", None)];
            let dir = devices(&all, Some("0-3"));
            assert_eq!(cores_in(dir.path(), &[0, 1, 2, 3, 4, 5, 6]), Some(2));
            assert_eq!(cores_in(dir.path(), &[5, 6]), Some(2));
            let arm = [("0", Some(300)), ("1", Some(300)), ("2", Some(800)), ("3", Some(1024))];
            let dir = devices(&arm, None);
            assert_eq!(cores_in(dir.path(), &[0, 1, 2, 3]), Some(2));
            assert_eq!(cores_in(dir.path(), &[0, 1]), Some(2));
        }

        #[test]
        fn lists_are_read_and_others_refused() {
            assert_eq!(processors("\t0-2,5\n"), Some(vec![0, 1, 2, 5]));
            assert_eq!(processors("\n"), Some(vec![]));
            assert_eq!([processors("0-99999999999"), processors("a"), processors("1-")], [None, None, None]);
        }
    }
}

#[cfg(target_os = "macos")]
mod system {
    use std::ffi::CStr;

    /// Cores of the first level of performance, or all physical ones.
    pub fn cores() -> Option<usize> {
        number(c"hw.perflevel0.physicalcpu").or_else(|| number(c"hw.physicalcpu"))
    }

    /// A number that the system has under this name.
    fn number(name: &CStr) -> Option<usize> {
        let (mut value, mut size) = (0i32, size_of::<i32>());
        // SAFETY: the name ends with a zero, the value has as many bytes as `size` says, and nothing is set.
        let failed = unsafe {
            libc::sysctlbyname(name.as_ptr(), (&raw mut value).cast(), &raw mut size, std::ptr::null_mut(), 0)
        };
        (failed == 0 && size == size_of::<i32>()).then(|| usize::try_from(value).ok())?
    }
}

#[cfg(not(any(target_os = "linux", target_os = "android", target_os = "macos")))]
mod system {
    /// Physical cores.
    pub fn cores() -> Option<usize> {
        Some(num_cpus::get_physical())
    }
}
