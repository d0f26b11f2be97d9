//! Which of a processor's vector instructions kernels may use: those that it has, or fewer by choice, for tests and
//! comparisons.

use std::fmt;
use std::str::FromStr;
use std::sync::atomic::{AtomicU8, Ordering};

use crate::error::{Error, Result};

/// A set of vector instructions. A kernel that needs a level runs on those behind it as well.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum CpuLevel {
    /// What every processor of the architecture has, as the compiler uses it.
    Portable,
    /// x86-64 with AVX2, FMA and F16C (Intel since 2013, AMD since 2015).
    Avx2,
    /// x86-64 with AVX2 and VNNI on its vectors of 256 bits: AVX-VNNI (Intel since 2021, AMD since 2024), or AVX-512 VL and
    /// VNNI.
    AvxVnni,
    /// x86-64 with AVX-512 F, BW, DQ, VL and VNNI (Intel since 2019, AMD since 2022).
    Avx512,
    /// aarch64 with its vector instructions, which all of these processors have.
    Neon,
    /// aarch64 with instructions for sums of four products of bytes (dotprod: Apple since 2019, Arm's cores since 2018).
    NeonDot,
    /// aarch64 with products of matrices of bytes as well (i8mm: Apple and Arm since 2021).
    NeonI8mm,
}

/// All levels with their names, those of an architecture from the lowest on.
const NAMES: [(CpuLevel, &str); 7] = [
    (CpuLevel::Portable, "portable"),
    (CpuLevel::Avx2, "avx2"),
    (CpuLevel::AvxVnni, "avxvnni"),
    (CpuLevel::Avx512, "avx512"),
    (CpuLevel::Neon, "neon"),
    (CpuLevel::NeonDot, "neondot"),
    (CpuLevel::NeonI8mm, "neoni8mm"),
];

/// The environment variable that limits the level.
const VARIABLE: &str = "TERNION_CPU";

/// The place in [`NAMES`] of the level that the process uses, or [`UNKNOWN`].
static USED: AtomicU8 = AtomicU8::new(UNKNOWN);
const UNKNOWN: u8 = u8::MAX;

impl CpuLevel {
    /// The highest level that this processor has.
    pub fn highest() -> Self {
        Self::of_this_processor().last().unwrap_or(CpuLevel::Portable)
    }

    /// All that this processor has, the lowest first.
    pub fn of_this_processor() -> impl Iterator<Item = Self> {
        NAMES.into_iter().map(|(level, _)| level).filter(|level| level.is_there())
    }

    /// Whether this processor has its instructions.
    fn is_there(self) -> bool {
        match self {
            CpuLevel::Portable => true,
            #[cfg(target_arch = "x86_64")]
            CpuLevel::Avx2 => {
                is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c")
            }
            #[cfg(target_arch = "x86_64")]
            CpuLevel::AvxVnni => {
                let wide = is_x86_feature_detected!("avx512vl") && is_x86_feature_detected!("avx512vnni");
                CpuLevel::Avx2.is_there() && (is_x86_feature_detected!("avxvnni") || wide)
            }
            #[cfg(target_arch = "x86_64")]
            CpuLevel::Avx512 => {
                CpuLevel::Avx2.is_there()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512vnni")
            }
            #[cfg(target_arch = "aarch64")]
            CpuLevel::Neon => std::arch::is_aarch64_feature_detected!("neon"),
            #[cfg(target_arch = "aarch64")]
            CpuLevel::NeonDot => CpuLevel::Neon.is_there() && std::arch::is_aarch64_feature_detected!("dotprod"),
            #[cfg(target_arch = "aarch64")]
            CpuLevel::NeonI8mm => CpuLevel::NeonDot.is_there() && std::arch::is_aarch64_feature_detected!("i8mm"),
            // Levels of other architectures.
            _ => false,
        }
    }
}

impl fmt::Display for CpuLevel {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let name = NAMES.iter().find(|(level, _)| level == self).map_or("", |(_, name)| name);
        f.write_str(name)
    }
}

impl FromStr for CpuLevel {
    type Err = Error;

    /// `portable`, `avx2`, `avxvnni`, `avx512`, `neon`, `neondot` or `neoni8mm`.
    fn from_str(s: &str) -> Result<Self> {
        let found = NAMES.iter().find(|(_, name)| *name == s);
        let names = || NAMES.map(|(_, name)| name).join(", ");
        found
            .map(|(level, _)| *level)
            .ok_or_else(|| Error::argument("CPU level", format!("is {s:?}, expected one of: {}", names())))
    }
}

/// The level that the process uses: what [`limit`] set, or the environment variable `TERNION_CPU` names, or the highest that the
/// processor has.
#[inline]
pub fn level() -> CpuLevel {
    match NAMES.get(usize::from(USED.load(Ordering::Relaxed))) {
        Some((level, _)) => *level,
        None => first_level(),
    }
}

#[cold]
fn first_level() -> CpuLevel {
    // A name that is not one is reported where a device is opened (`check`).
    let level = named_by_environment().ok().flatten().unwrap_or_else(CpuLevel::highest);
    USED.store(level as u8, Ordering::Relaxed);
    level
}

/// From now on the process uses this level, in engines that are open as well: kernels ask for it in each call. Results of
/// levels differ in their last bits.
///
/// # Errors
/// [`Error::Argument`] if the processor does not have it.
pub fn limit(to: CpuLevel) -> Result<()> {
    USED.store(checked(to)? as u8, Ordering::Relaxed);
    Ok(())
}

/// Checks what the environment asks for.
///
/// # Errors
/// [`Error::Argument`] for a level that is not one, or that the processor does not have.
pub(crate) fn check() -> Result<()> {
    named_by_environment().map(|_| ())
}

fn named_by_environment() -> Result<Option<CpuLevel>> {
    match std::env::var_os(VARIABLE).filter(|name| !name.is_empty()) {
        Some(name) => checked(name.to_string_lossy().parse()?).map(Some),
        None => Ok(None),
    }
}

fn checked(level: CpuLevel) -> Result<CpuLevel> {
    if !level.is_there() {
        let names: Vec<String> = CpuLevel::of_this_processor().map(|level| level.to_string()).collect();
        let problem = format!("is {level}, but this processor has these: {}", names.join(", "));
        return Err(Error::argument("CPU level", problem));
    }
    Ok(level)
}

/// Whether kernels of a level of this architecture may run.
#[cfg_attr(not(any(target_arch = "x86_64", target_arch = "aarch64")), allow(dead_code))] // There are none.
pub(crate) fn allows(needed: CpuLevel) -> bool {
    level() >= needed
}

/// Defines a function whose body is compiled for each level, as the compiler vectorises it; a call runs the one of the process's
/// level. Levels that add nothing for it share one: on aarch64 the vector instructions that it uses are never absent. The body may
/// ask by `FMA` whether its processors multiply and add in one instruction; where they do not, a function does, which takes long.
macro_rules! for_each_level {
    ($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $type:ty),* $(,)?) $(-> $out:ty)? $body:block) => {
        $(#[$meta])*
        $vis fn $name($($arg: $type),*) $(-> $out)? {
            #[inline(always)]
            fn body<const FMA: bool>($($arg: $type),*) $(-> $out)? $body
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
                fn avx512($($arg: $type),*) $(-> $out)? {
                    body::<true>($($arg),*)
                }
                #[target_feature(enable = "avx2,fma,f16c")]
                fn avx2($($arg: $type),*) $(-> $out)? {
                    body::<true>($($arg),*)
                }
                match $crate::cpu_level::level() {
                    // SAFETY: the processor has what the level says.
                    $crate::cpu_level::CpuLevel::Avx512 => return unsafe { avx512($($arg),*) },
                    $crate::cpu_level::CpuLevel::Avx2 | $crate::cpu_level::CpuLevel::AvxVnni => {
                        // SAFETY: likewise.
                        return unsafe { avx2($($arg),*) };
                    }
                    _ => {}
                }
            }
            body::<{ cfg!(target_arch = "aarch64") }>($($arg),*)
        }
    };
}
pub(crate) use for_each_level;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_levels_and_others_an_error_with_the_names() {
        for (level, name) in NAMES {
            assert_eq!((level.to_string().as_str(), name.parse::<CpuLevel>().unwrap()), (name, level));
        }
        let error = "sse9".parse::<CpuLevel>().unwrap_err().to_string();
        assert!(
            error.contains("sse9") && error.contains("portable, avx2, avxvnni, avx512, neon, neondot, neoni8mm"),
            "{error}"
        );
    }

    #[test]
    fn each_level_that_the_processor_has_may_be_used_and_no_other() {
        let highest = CpuLevel::highest();
        assert_eq!(CpuLevel::of_this_processor().last(), Some(highest));
        let there: Vec<CpuLevel> = CpuLevel::of_this_processor().collect();
        assert!(there[0] == CpuLevel::Portable && there.is_sorted(), "{there:?}");
        for (level, _) in NAMES {
            let limited = limit(level);
            assert_eq!(limited.is_ok(), there.contains(&level), "{level}");
            match limited {
                Ok(()) => assert!(allows(level)),
                Err(error) => assert!(error.to_string().contains(&highest.to_string()), "{error}"),
            }
        }
        limit(highest).unwrap();
    }

    for_each_level! {
        /// A function with borrowed arguments and a result.
        fn first_of(x: &[f32], skip: usize) -> Option<f32> {
            x.get(skip).copied()
        }
    }

    #[test]
    fn functions_of_each_level_are_called_like_any() {
        assert_eq!((first_of(&[1.0, 2.0], 1), first_of(&[], 0)), (Some(2.0), None));
    }
}
