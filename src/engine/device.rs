//! From a device choice to a backend, and one line that says why. Opening a device gives its capabilities; choosing kernels,
//! which may take seconds, follows when a model's weights are on it.

use std::path::PathBuf;

use crate::cpu::Cpu;
use crate::cpu_level;
use crate::engine::options::{DeviceChoice, DeviceOptions, Precision};
use crate::error::{Error, Result};
use crate::gpu::{AdapterKind, Adapters, Device, Gpu};
use crate::plan::{Backend, Caps};

/// A backend and why it was taken.
pub type Chosen = (Box<dyn Backend>, String);

/// That kernel variants are timed, and the folder where the choice is kept, if there is one.
#[derive(Debug, Clone)]
pub(crate) struct Tuning(pub Option<PathBuf>);

/// A device that is open.
pub(crate) struct Opened {
    device: Kind,
    why: String,
}

enum Kind {
    Cpu(Box<Cpu>),
    /// A GPU, and how kernel variants are to be chosen by timing them, if so.
    Gpu(Device, Option<Tuning>),
}

impl Opened {
    /// What kernels may use here.
    pub fn caps(&self) -> Caps {
        match &self.device {
            Kind::Cpu(cpu) => cpu.caps(),
            Kind::Gpu(device, _) => device.caps,
        }
    }

    /// One line: the device, its driver, its kind.
    pub fn describe(&self) -> String {
        match &self.device {
            Kind::Cpu(cpu) => cpu.describe(),
            Kind::Gpu(device, _) => device.label.clone(),
        }
    }

    /// Whether memory is taken when it is allocated. On the CPU the system gives pages to zeroed memory as they are written.
    pub fn takes_memory_at_once(&self) -> bool {
        matches!(self.device, Kind::Gpu(..))
    }

    /// This precision, or 32 bits with a warning where the device cannot unpack 16-bit floats.
    pub fn precision(&self, wanted: Precision) -> Precision {
        if wanted == Precision::F16 && !self.caps().unpack_f16 {
            log::warn!("{} cannot unpack 16-bit floats: weights and cache take 32 bits", self.describe());
            return Precision::F32;
        }
        wanted
    }

    /// How [`crate::engine::autotune::tune`] is to choose, if it is wanted once weights are loaded.
    pub fn tuning(&self) -> Option<Tuning> {
        match &self.device {
            Kind::Cpu(_) => None,
            Kind::Gpu(_, tuning) => tuning.clone(),
        }
    }

    /// The backend.
    ///
    /// # Errors
    /// Those of [`Gpu::new`].
    pub fn backend(self) -> Result<Chosen> {
        Ok(match self.device {
            Kind::Cpu(cpu) => (cpu, self.why),
            Kind::Gpu(device, _) => {
                let caps = device.caps;
                (Box::new(Gpu::new(device, caps)?), self.why)
            }
        })
    }
}

/// Opens what was asked for, with the default kernel variants.
///
/// # Errors
/// [`Error::Device`] if there is no such adapter, with the adapters that there are; [`Error::Argument`] for a number of
/// threads out of range.
pub fn choose(options: &DeviceOptions) -> Result<Chosen> {
    open(options)?.backend()
}

/// Opens what was asked for.
///
/// # Errors
/// As [`choose`].
pub(crate) fn open(options: &DeviceOptions) -> Result<Opened> {
    match options.cpu_level {
        Some(level) => cpu_level::limit(level)?,
        None => cpu_level::check()?,
    }
    let cpu = cpu(options.threads)?;
    let on_cpu = |why: String| Ok(Opened { device: Kind::Cpu(Box::new(cpu())), why });
    if options.device == DeviceChoice::Cpu {
        return on_cpu("as asked".into());
    }
    let tuning = options.autotune.then(|| Tuning(options.cache.clone()));
    if let DeviceChoice::Opened(device) = &options.device {
        return Ok(Opened { device: Kind::Gpu(device.clone(), tuning), why: "the application's".into() });
    }
    let adapters = Adapters::find();
    let (found, wanted, why) = match &options.device {
        DeviceChoice::Cpu | DeviceChoice::Opened(_) | DeviceChoice::Auto => match adapters.best(false) {
            Some(index) => (Some(index), "auto", "the best GPU found"),
            None => return on_cpu(no_gpu(&adapters)),
        },
        DeviceChoice::Gpu => (adapters.best(true), "gpu", "as asked"),
        DeviceChoice::Number(n) => (Some(*n), "number", "as asked"),
        DeviceChoice::Name(name) => (adapters.named(name), name.as_str(), "as asked"),
    };
    let device = adapters.open(found.ok_or_else(|| missing(wanted, &adapters))?)?;
    Ok(Opened { device: Kind::Gpu(device, tuning), why: why.into() })
}

/// A constructor of the CPU backend, if the number of threads is in range.
fn cpu(threads: Option<usize>) -> Result<impl FnOnce() -> Cpu> {
    let max = DeviceOptions::MAX_THREADS;
    if let Some(n) = threads.filter(|n| !(1..=max).contains(n)) {
        return Err(Error::argument("threads", format!("is {n}, expected 1..={max}")));
    }
    Ok(move || threads.map_or_else(Cpu::new, Cpu::with_threads))
}

fn no_gpu(adapters: &Adapters) -> String {
    match adapters.summaries().iter().find(|a| a.kind == AdapterKind::Software) {
        Some(a) => {
            format!("the only adapter, {}, computes in software; the device `gpu` takes it all the same", a.name)
        }
        None => "no graphics adapter was found".into(),
    }
}

fn missing(wanted: &str, adapters: &Adapters) -> Error {
    let names: Vec<String> = adapters.summaries().into_iter().map(|a| a.name).collect();
    let found = if names.is_empty() { "there are none".into() } else { format!("there are: {}", names.join(", ")) };
    Error::Device { device: wanted.to_owned(), problem: format!("no such adapter; {found}; or take the device `cpu`") }
}
