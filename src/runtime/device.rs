//! From a device choice to a backend, and one line that says why.

use super::autotune::tuned;
use super::options::{DeviceChoice, Place};
use crate::cpu::Cpu;
use crate::error::{Error, Result};
use crate::gpu::{AdapterKind, Adapters, Gpu};
use crate::plan::Backend;

/// A backend and why it was taken.
pub type Chosen = (Box<dyn Backend>, String);

/// Opens what was asked for.
///
/// # Errors
/// [`Error::Device`] if there is no such adapter, with the adapters that there are; [`Error::Argument`] for a number of
/// threads out of range.
pub fn choose(place: &Place) -> Result<Chosen> {
    let choice = &place.device;
    let cpu = cpu(place.threads)?;
    if *choice == DeviceChoice::Cpu {
        return Ok((Box::new(cpu()), "as asked".into()));
    }
    let adapters = Adapters::find();
    let index = match choice {
        DeviceChoice::Auto => match adapters.best(false) {
            Some(index) => index,
            None => return Ok((Box::new(cpu()), no_gpu(&adapters))),
        },
        DeviceChoice::Gpu => adapters.best(true).ok_or_else(|| missing("gpu", &adapters))?,
        DeviceChoice::Number(n) => *n,
        DeviceChoice::Name(name) => adapters.named(name).ok_or_else(|| missing(name, &adapters))?,
        DeviceChoice::Cpu => 0,
    };
    let device = adapters.open(index)?;
    let caps = if place.autotune { tuned(&device) } else { device.caps };
    let why = if *choice == DeviceChoice::Auto { "the best GPU found" } else { "as asked" };
    Ok((Box::new(Gpu::new(device, caps)?), why.into()))
}

/// What makes the CPU backend, if the number of threads is in range.
fn cpu(threads: Option<usize>) -> Result<impl FnOnce() -> Cpu> {
    let most = Place::MAX_THREADS;
    if let Some(n) = threads.filter(|n| !(1..=most).contains(n)) {
        return Err(Error::argument("threads", format!("is {n}, expected 1..={most}")));
    }
    Ok(move || threads.map_or_else(Cpu::new, Cpu::with_threads))
}

fn no_gpu(adapters: &Adapters) -> String {
    match adapters.summaries().iter().find(|a| a.kind == AdapterKind::Software) {
        Some(a) => format!("the only adapter, {}, computes in software; --device gpu takes it all the same", a.name),
        None => "no graphics adapter was found".into(),
    }
}

fn missing(wanted: &str, adapters: &Adapters) -> Error {
    let names: Vec<String> = adapters.summaries().into_iter().map(|a| a.name).collect();
    let found = if names.is_empty() { "there are none".into() } else { format!("there are: {}", names.join(", ")) };
    Error::Device { device: wanted.to_owned(), problem: format!("no such adapter; {found}; or use --device cpu") }
}
