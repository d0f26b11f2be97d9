//! The adapter that kernels are tested on, and the backends that are compared.
#![allow(dead_code)] // Each test uses a part.

use std::sync::Once;

use ternion::gpu::{Adapters, Device, Gpu};
use ternion::unstable::cpu::Cpu;
use ternion::unstable::plan::{Backend, Caps, Choices, Plan};

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
/// adapter's capabilities, and with the usual variants of the other kind of device.
pub fn backends() -> Vec<(String, Box<dyn Backend>)> {
    let mut all: Vec<(String, Box<dyn Backend>)> = vec![("fast CPU".into(), Box::new(Cpu::new()))];
    let Some(full) = device().map(|d| d.caps) else { return all };
    let other = Caps { cpu_driver: !full.cpu_driver, ..full };
    for caps in full.subsets().into_iter().chain([other]) {
        let gpu = gpu(|_| caps).expect("the adapter is still there");
        let of = if caps.cpu_driver { "a CPU driver" } else { "a GPU" };
        all.push((format!("GPU {:?}, as {of}", caps.defines()), Box::new(gpu)));
    }
    all
}

/// Choices that together run every variant of every node of a plan on a backend; one without any where it has no kernels.
pub fn choices(backend: &dyn Backend, plan: &Plan) -> Vec<Choices> {
    if backend.runs_at_once() {
        return vec![Choices::default()];
    }
    let caps = backend.caps();
    let mut all = vec![Choices::default()];
    for node in &plan.nodes {
        let (bucket, variants) = plan.variants(node, &caps);
        for (i, variant) in variants.all().enumerate().skip(1) {
            all.resize(all.len().max(i + 1), Choices::default());
            all[i].set(node.op.name(), &bucket, &variant.name);
        }
    }
    all
}
