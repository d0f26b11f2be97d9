//! The adapter that kernels are tested on, and the backends that are compared.
#![allow(dead_code)] // Each test uses a part.

use std::sync::Once;

use ternion::cpu::Cpu;
use ternion::gpu::{Adapters, Device, Gpu};
use ternion::plan::{Backend, Caps, Tuning};

/// An open adapter, software ones included. Without one it says so once, or panics if `REQUIRE_GPU=1`.
pub fn device() -> Option<Device> {
    static SKIPPED: Once = Once::new();
    let adapters = Adapters::find();
    let Some(best) = adapters.best(true) else {
        assert!(std::env::var("REQUIRE_GPU").as_deref() != Ok("1"), "REQUIRE_GPU=1, and there is no adapter");
        SKIPPED.call_once(|| eprintln!("skipped: no adapter"));
        return None;
    };
    Some(adapters.open(best).expect("the adapter opens"))
}

/// A backend on the best adapter, with its capabilities as `mask` leaves them.
pub fn gpu(mask: impl FnOnce(Caps) -> Caps) -> Option<Gpu> {
    let device = device()?;
    let caps = mask(device.caps);
    Some(Gpu::new(device, caps).expect("a GPU backend"))
}

/// Every backend that is checked against the plain definitions: the fast CPU, and the GPU with every subset of the
/// adapter's capabilities, and with every tuning.
pub fn backends() -> Vec<(String, Box<dyn Backend>)> {
    let mut all: Vec<(String, Box<dyn Backend>)> = vec![("fast CPU".into(), Box::new(Cpu::new()))];
    let Some(full) = device().map(|d| d.caps) else { return all };
    let tuned = Tuning::ALL.into_iter().filter(|&t| t != full.tuning).map(|tuning| Caps { tuning, ..full });
    for caps in full.subsets().into_iter().chain(tuned) {
        let gpu = gpu(|_| caps).expect("the adapter is still there");
        all.push((format!("GPU {:?}, {:?}", caps.defines(), caps.tuning), Box::new(gpu)));
    }
    all
}
