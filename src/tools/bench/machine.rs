//! The program that measures, and the machine that it runs on.

use serde::{Deserialize, Serialize};

/// What measures: the same for all rows of a process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// Version of this crate.
    pub version: String,
    /// The commit at which the library was compiled last, with `-dirty` where its sources differed from it; none where it
    /// was not known then.
    pub commit: Option<String>,
    /// Operating system and architecture, and on Linux the version of the kernel.
    pub system: String,
    /// Name of the processor, if the system tells it.
    pub processor: Option<String>,
    /// Bytes of the machine's memory, if the system tells them.
    pub memory_bytes: Option<u64>,
}

impl Machine {
    /// This program on this machine.
    pub fn this() -> Self {
        let (os, arch) = (std::env::consts::OS, std::env::consts::ARCH);
        let release = system::release().map_or(String::new(), |release| format!(" {release}"));
        Machine {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            commit: option_env!("TERNION_COMMIT").map(str::to_owned),
            system: format!("{os} {arch}{release}"),
            processor: system::processor(),
            memory_bytes: system::memory(),
        }
    }

    /// The version, and the commit in parentheses.
    pub fn program(&self) -> String {
        let commit = self.commit.as_ref().map_or(String::new(), |commit| format!(" ({commit})"));
        format!("ternion {}{commit}", self.version)
    }
}

/// The time now in UTC, to the second, as RFC 3339 writes it.
pub(super) fn now() -> String {
    let now = jiff::Timestamp::now();
    now.round(jiff::Unit::Second).unwrap_or(now).to_string()
}

/// Peak resident memory of this process in bytes, since its beginning or since [`forget_peak`]; none if the system does not
/// report it.
pub(super) fn peak_host_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    kilobytes(&status, "VmHWM:")
}

/// Lets the peak begin anew with what is resident now, where the system can do that (Linux).
pub(super) fn forget_peak() {
    // Where it cannot, the peak stays the one of the whole process.
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}

/// The number of a line such as `VmHWM:  1234 kB`, in bytes.
fn kilobytes(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(any(target_os = "linux", target_os = "android"))]
mod system {
    use std::fs::read_to_string;

    pub fn release() -> Option<String> {
        Some(read_to_string("/proc/sys/kernel/osrelease").ok()?.trim().to_owned())
    }

    pub fn processor() -> Option<String> {
        super::processor_in(&read_to_string("/proc/cpuinfo").ok()?)
    }

    pub fn memory() -> Option<u64> {
        super::kilobytes(&read_to_string("/proc/meminfo").ok()?, "MemTotal:")
    }
}

#[cfg(target_os = "macos")]
mod system {
    use std::ffi::CStr;

    pub fn release() -> Option<String> {
        text(c"kern.osproductversion")
    }

    pub fn processor() -> Option<String> {
        text(c"machdep.cpu.brand_string")
    }

    pub fn memory() -> Option<u64> {
        Some(u64::from_ne_bytes(bytes(c"hw.memsize", &mut [0; 8])?.try_into().ok()?))
    }

    fn text(name: &CStr) -> Option<String> {
        let mut room = [0; 256];
        Some(CStr::from_bytes_until_nul(bytes(name, &mut room)?).ok()?.to_string_lossy().into_owned())
    }

    /// What the system has under this name, as far as there is room for it.
    fn bytes<'a>(name: &CStr, room: &'a mut [u8]) -> Option<&'a [u8]> {
        let mut size = room.len();
        // SAFETY: the name ends with a zero, the room has as many bytes as `size` says, and nothing is set.
        let failed = unsafe {
            libc::sysctlbyname(name.as_ptr(), room.as_mut_ptr().cast(), &raw mut size, std::ptr::null_mut(), 0)
        };
        (failed == 0).then(|| room.get(..size))?
    }
}

#[cfg(not(any(target_os = "linux", target_os = "android", target_os = "macos")))]
mod system {
    pub fn release() -> Option<String> {
        None
    }

    /// Windows tells its programs the processor's family.
    pub fn processor() -> Option<String> {
        std::env::var("PROCESSOR_IDENTIFIER").ok()
    }

    pub fn memory() -> Option<u64> {
        None
    }
}

/// The first name of a processor in the text of `/proc/cpuinfo`: on Arm, numbers stand for it.
#[cfg_attr(not(any(target_os = "linux", target_os = "android")), allow(dead_code))] // The file is Linux's.
fn processor_in(cpuinfo: &str) -> Option<String> {
    let value = |name: &str| {
        let line = cpuinfo.lines().find(|line| line.split(':').next().is_some_and(|key| key.trim() == name))?;
        Some(line.split_once(':')?.1.trim().to_owned()).filter(|value| !value.is_empty())
    };
    let arm = || Some(format!("Arm implementer {} part {}", value("CPU implementer")?, value("CPU part")?));
    value("model name").or_else(|| value("Hardware")).or_else(arm)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_processor_is_named_as_its_system_names_it() {
        let amd = "processor\t: 0\nmodel\t\t: 17\nmodel name\t: AMD EPYC 9B14\nprocessor\t: 1\nmodel name\t: other\n";
        assert_eq!(processor_in(amd).as_deref(), Some("AMD EPYC 9B14"));
        let arm = "processor\t: 0\nCPU implementer\t: 0x41\nCPU part\t: 0xd0c\n";
        assert_eq!(processor_in(arm).as_deref(), Some("Arm implementer 0x41 part 0xd0c"));
        assert_eq!(processor_in("processor: 0\n"), None);
    }

    #[test]
    fn lines_of_kilobytes_are_read_and_others_are_not() {
        assert_eq!(kilobytes("a: 1 kB\nMemTotal:       23 kB\n", "MemTotal:"), Some(23 * 1024));
        assert_eq!([kilobytes("MemTotal: x kB", "MemTotal:"), kilobytes("MemTotal: 5", "MemTotal:")], [None, None]);
    }

    #[test]
    fn this_machine_has_a_system_and_the_time_is_in_utc() {
        let machine = Machine::this();
        assert!(machine.system.contains(std::env::consts::ARCH), "{machine:?}");
        assert!(machine.program().starts_with(concat!("ternion ", env!("CARGO_PKG_VERSION"))));
        let time = now();
        assert_eq!((time.len(), time.ends_with('Z')), ("2026-01-31T12:00:00Z".len(), true), "{time}");
    }
}
