//! Adapters: listing, choosing, opening.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use serde::Serialize;

use crate::error::{Error, Result};
use crate::gpu::faults::{Fault, Faults};
use crate::plan::{Caps, DeviceParts};

/// An adapter as wgpu reports it.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct AdapterSummary {
    /// Number in the list, for `--device N`.
    pub index: usize,
    /// The device's name.
    pub name: String,
    /// Vulkan, Metal, Dx12 or Gl.
    pub backend: String,
    /// Driver and its version.
    pub driver: String,
    /// What kind of device.
    pub kind: AdapterKind,
    /// The features that matter to kernels, as (name, present).
    pub features: Vec<(&'static str, bool)>,
    /// The limits that matter to kernels, as (name, value).
    pub limits: Vec<(&'static str, u64)>,
}

/// What kind of device an adapter is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum AdapterKind {
    /// A graphics card.
    Discrete,
    /// Part of the processor.
    Integrated,
    /// Of a virtual machine, or of unknown kind.
    Other,
    /// A driver that computes on the CPU.
    Software,
}

/// Every adapter: real GPUs first, and each device with its first backend before any device with its second one.
#[derive(Debug)]
pub struct Adapters {
    list: Vec<wgpu::Adapter>,
}

/// The backends tried when `WGPU_BACKEND` does not name any: GL only where nothing better is found.
const NATIVE: wgpu::Backends = wgpu::Backends::VULKAN.union(wgpu::Backends::METAL).union(wgpu::Backends::DX12);

impl Adapters {
    /// The interfaces that this build reaches adapters through: "vulkan", "metal", "dx12" or "gl".
    pub fn interfaces() -> Vec<String> {
        wgpu::Instance::enabled_backend_features().iter_names().map(|(name, _)| name.to_lowercase()).collect()
    }

    /// All adapters of the backends that `WGPU_BACKEND` names (default: Vulkan, Metal, DX12; GL if there are none).
    pub fn find() -> Self {
        let list = match wgpu::Backends::from_env() {
            Some(backends) => Self::of(backends),
            None => {
                let native = Self::of(NATIVE);
                if native.is_empty() { Self::of(wgpu::Backends::GL) } else { native }
            }
        };
        Adapters { list }
    }

    fn of(backends: wgpu::Backends) -> Vec<wgpu::Adapter> {
        let mut desc = wgpu::InstanceDescriptor::new_without_display_handle_from_env();
        desc.backends = backends;
        let mut list = pollster::block_on(wgpu::Instance::new(desc).enumerate_adapters(backends));
        list.sort_by_key(|a| kind(a) as u8);
        list
    }

    /// What `ternion devices` prints.
    pub fn summaries(&self) -> Vec<AdapterSummary> {
        self.list.iter().enumerate().map(|(index, a)| summary(index, a)).collect()
    }

    /// The best real GPU, or the one that `WGPU_ADAPTER_NAME` names (part of a name, any case).
    pub fn best(&self, software: bool) -> Option<usize> {
        if let Ok(name) = std::env::var("WGPU_ADAPTER_NAME") {
            return self.named(&name);
        }
        self.list.iter().position(|a| software || kind(a) != AdapterKind::Software)
    }

    /// The first adapter whose name contains `name`, ignoring case.
    pub fn named(&self, name: &str) -> Option<usize> {
        let name = name.to_lowercase();
        self.list.iter().position(|a| a.get_info().name.to_lowercase().contains(&name))
    }

    /// Opens adapter `index` with all its limits.
    ///
    /// # Errors
    /// [`Error::Device`] if there is no such adapter, or it cannot be opened.
    pub fn open(&self, index: usize) -> Result<Device> {
        let Some(adapter) = self.list.get(index) else {
            let problem = format!("there are {} adapters", self.list.len());
            return Err(Error::Device { device: format!("number {index}"), problem });
        };
        Device::open(adapter)
    }
}

fn kind(adapter: &wgpu::Adapter) -> AdapterKind {
    match adapter.get_info().device_type {
        wgpu::DeviceType::DiscreteGpu => AdapterKind::Discrete,
        wgpu::DeviceType::IntegratedGpu => AdapterKind::Integrated,
        wgpu::DeviceType::Cpu => AdapterKind::Software,
        _ => AdapterKind::Other,
    }
}

/// Name, backend and driver of an adapter.
fn label(info: &wgpu::AdapterInfo) -> String {
    format!("{} ({:?}, {})", info.name, info.backend, driver(info))
}

/// What kernels may use on a device that was opened with these features and limits.
fn caps(adapter: &wgpu::Adapter, info: &wgpu::AdapterInfo, features: wgpu::Features, limits: &wgpu::Limits) -> Caps {
    let subgroups = features.contains(wgpu::Features::SUBGROUP);
    Caps {
        subgroups,
        software_subgroups: subgroups && info.device_type == wgpu::DeviceType::Cpu && info.subgroup_min_size >= 8,
        dot4: info.backend != wgpu::Backend::Gl,
        unpack_f16: adapter.get_downlevel_capabilities().flags.contains(wgpu::DownlevelFlags::SHADER_F16_IN_F32),
        max_binding: max_binding(limits),
        cpu_driver: kind(adapter) == AdapterKind::Software,
    }
}

/// The driver and its version, as far as the adapter names them.
fn driver(info: &wgpu::AdapterInfo) -> String {
    let parts = [info.driver.trim(), info.driver_info.trim()];
    parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(" ")
}

/// An adapter by its parts.
pub(super) fn parts(info: &wgpu::AdapterInfo) -> DeviceParts {
    DeviceParts {
        adapter: Some(info.name.clone()),
        ids: Some([info.vendor, info.device]),
        api: Some(info.backend.to_str().to_owned()),
        driver: Some(driver(info)).filter(|driver| !driver.is_empty()),
        threads: None,
    }
}

/// Maximum bytes of a binding: what a device of these limits takes, and what the 32-bit indices of shaders reach.
fn max_binding(limits: &wgpu::Limits) -> u64 {
    limits.max_storage_buffer_binding_size.min(limits.max_buffer_size).min(1 << 32)
}

fn summary(index: usize, adapter: &wgpu::Adapter) -> AdapterSummary {
    let (info, features, limits) = (adapter.get_info(), adapter.features(), adapter.limits());
    AdapterSummary {
        index,
        backend: format!("{:?}", info.backend),
        driver: driver(&info),
        kind: kind(adapter),
        features: vec![
            ("subgroups", features.contains(wgpu::Features::SUBGROUP)),
            ("f16", features.contains(wgpu::Features::SHADER_F16)),
            ("timestamps", features.contains(wgpu::Features::TIMESTAMP_QUERY)),
        ],
        limits: vec![
            ("storage binding, bytes", limits.max_storage_buffer_binding_size),
            ("buffer, bytes", limits.max_buffer_size),
            ("workgroup storage, bytes", u64::from(limits.max_compute_workgroup_storage_size)),
            ("workgroup invocations", u64::from(limits.max_compute_invocations_per_workgroup)),
            ("smallest subgroup", u64::from(info.subgroup_min_size)),
            ("largest subgroup", u64::from(info.subgroup_max_size)),
        ],
        name: info.name,
    }
}

/// Errors that wgpu reports outside of a call, kept until the next call can return them.
#[derive(Debug, Default)]
pub struct DeviceErrors {
    lost: AtomicBool,
    message: Mutex<Option<String>>,
}

impl DeviceErrors {
    fn note(&self, message: String) {
        log::error!("{message}");
        if let Ok(mut slot) = self.message.lock() {
            slot.get_or_insert(message);
        }
    }
}

/// An open device with its queue. Clones are of the same device.
#[derive(Debug, Clone)]
pub struct Device {
    /// The device.
    pub device: wgpu::Device,
    /// Its queue.
    pub queue: wgpu::Queue,
    /// What kernels may use.
    pub caps: Caps,
    /// Name, backend, driver.
    pub label: String,
    /// Errors in place of what it does, for tests.
    pub faults: Faults,
    /// Errors that the device reports; none for an application's device, whose callbacks are its own.
    trouble: Option<Arc<DeviceErrors>>,
}

/// Devices are equal if they are one.
impl PartialEq for Device {
    fn eq(&self, other: &Self) -> bool {
        self.device == other.device
    }
}

impl Eq for Device {}

/// Features that kernels use where a device has them.
const WANTED: wgpu::Features = wgpu::Features::SUBGROUP.union(wgpu::Features::TIMESTAMP_QUERY);

impl Device {
    /// A device that the application has opened, with its queue, from the adapter that it is of: both use it, and share its
    /// memory. Its callbacks for errors and for its loss stay the application's; errors of this engine's commands are caught
    /// in error scopes.
    ///
    /// Kernels use [`Device::wanted_features`] and [`Device::wanted_limits`] as far as the device was opened with them:
    /// without subgroups they are slower, and smaller bindings cut matrices into more pieces.
    ///
    /// # Errors
    /// [`Error::Unsupported`] with the limit that is too small for kernels, what it is and what is needed.
    pub fn from_wgpu(adapter: &wgpu::Adapter, device: wgpu::Device, queue: wgpu::Queue) -> Result<Self> {
        let (info, limits, features) = (adapter.get_info(), device.limits(), device.features());
        let label = label(&info);
        let needed = wgpu::Limits::defaults();
        let limit = |name, has: u32, needs: u32| (name, u64::from(has), u64::from(needs));
        let checked = [
            limit(
                "max_compute_invocations_per_workgroup",
                limits.max_compute_invocations_per_workgroup,
                needed.max_compute_invocations_per_workgroup,
            ),
            limit(
                "max_compute_workgroup_size_x",
                limits.max_compute_workgroup_size_x,
                needed.max_compute_workgroup_size_x,
            ),
            limit(
                "max_compute_workgroup_storage_size",
                limits.max_compute_workgroup_storage_size,
                needed.max_compute_workgroup_storage_size,
            ),
            limit(
                "max_compute_workgroups_per_dimension",
                limits.max_compute_workgroups_per_dimension,
                needed.max_compute_workgroups_per_dimension,
            ),
            limit(
                "max_storage_buffers_per_shader_stage",
                limits.max_storage_buffers_per_shader_stage,
                needed.max_storage_buffers_per_shader_stage,
            ),
            ("max_storage_buffer_binding_size", limits.max_storage_buffer_binding_size, 1 << 27),
        ];
        if let Some((name, has, needs)) = checked.into_iter().find(|(_, has, needs)| has < needs) {
            let (object, problem) =
                (format!("the device of {label}"), format!("{name} is {has}, at least {needs} is needed"));
            return Err(Error::Unsupported { object, problem });
        }
        let caps = caps(adapter, &info, features, &limits);
        Ok(Device { device, queue, caps, label, faults: Faults::default(), trouble: None })
    }

    /// The features of an adapter that kernels use, to open a device with.
    pub fn wanted_features(adapter: &wgpu::Adapter) -> wgpu::Features {
        adapter.features() & WANTED
    }

    /// The limits of an adapter, to open a device with: kernels use what there is.
    pub fn wanted_limits(adapter: &wgpu::Adapter) -> wgpu::Limits {
        adapter.limits()
    }

    fn open(adapter: &wgpu::Adapter) -> Result<Self> {
        let info = adapter.get_info();
        let label = label(&info);
        let features = Self::wanted_features(adapter);
        let limits = adapter.limits();
        let desc = wgpu::DeviceDescriptor {
            label: Some("ternion"),
            required_features: features,
            required_limits: limits.clone(),
            ..Default::default()
        };
        let failed = |e: wgpu::RequestDeviceError| Error::Device { device: label.clone(), problem: e.to_string() };
        let (device, queue) = pollster::block_on(adapter.request_device(&desc)).map_err(failed)?;
        let trouble = Arc::new(DeviceErrors::default());
        // By default an uncaptured error panics.
        let on_error = trouble.clone();
        device.on_uncaptured_error(Arc::new(move |e: wgpu::Error| on_error.note(e.to_string())));
        let on_lost = trouble.clone();
        device.set_device_lost_callback(move |reason, message| {
            on_lost.lost.store(true, Ordering::SeqCst);
            on_lost.note(format!("the device was lost ({reason:?}): {message}"));
        });
        let caps = caps(adapter, &info, features, &limits);
        Ok(Device { device, queue, caps, label, faults: Faults::default(), trouble: Some(trouble) })
    }

    /// Fails with the errors since the last call, or if the device is lost: after a loss wgpu itself reports nothing.
    ///
    /// # Errors
    /// [`Error::Device`] or [`Error::DeviceLost`].
    pub fn check(&self) -> Result<()> {
        let Some(trouble) = &self.trouble else { return Ok(()) };
        let message = trouble.message.lock().ok().and_then(|mut m| m.take());
        let lost = trouble.lost.load(Ordering::SeqCst);
        match (message, lost) {
            (None, false) => Ok(()),
            (message, _) => {
                let (device, problem) = (self.label.clone(), message.unwrap_or_else(|| "the device was lost".into()));
                Err(if lost { Error::DeviceLost { device, problem } } else { Error::Device { device, problem } })
            }
        }
    }

    /// Runs `f`, whose commands are those of a step. On an application's device, what wgpu says of them comes back here and not to
    /// the application's callback.
    ///
    /// # Errors
    /// Those of `f`, and of [`Device::guarded`].
    pub fn caught<T>(&self, what: &str, f: impl FnOnce() -> Result<T>) -> Result<T> {
        if self.trouble.is_none() {
            return self.guarded(what, 0, f)?;
        }
        self.fails(what, 0)?;
        f()
    }

    /// The error that a test has asked for, if it is its turn.
    fn fails(&self, what: &str, bytes: u64) -> Result<()> {
        match self.faults.next() {
            None => Ok(()),
            Some(Fault::OutOfMemory) => Err(self.out_of_memory(what, bytes)),
            Some(Fault::Refused) => Err(self.failure(format!("{what}: refused, as a test has asked for"))),
            Some(Fault::Panic) => panic!("{what}: a panic, as a test has asked for"),
        }
    }

    fn out_of_memory(&self, what: &str, bytes: u64) -> Error {
        let (what, device) = (what.to_owned(), self.label.clone());
        Error::OutOfMemory { what, needed: bytes, available: None, device }
    }

    /// Runs `f` and returns what wgpu says of its commands: out of memory as [`Error::OutOfMemory`] for `what`.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], [`Error::Device`] or [`Error::DeviceLost`].
    pub fn guarded<T>(&self, what: &str, bytes: u64, f: impl FnOnce() -> T) -> Result<T> {
        self.fails(what, bytes)?;
        let validation = self.device.push_error_scope(wgpu::ErrorFilter::Validation);
        let internal = self.device.push_error_scope(wgpu::ErrorFilter::Internal);
        let memory = self.device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
        let result = f();
        let memory = pollster::block_on(memory.pop());
        let other = pollster::block_on(internal.pop()).or(pollster::block_on(validation.pop()));
        if memory.is_some() {
            return Err(self.out_of_memory(what, bytes));
        }
        match other {
            Some(e) => Err(self.failure(format!("{what}: {e}"))),
            None => self.check().map(|()| result),
        }
    }

    /// The error of a command that failed: [`Error::DeviceLost`] if the device is lost, else [`Error::Device`].
    pub fn failure(&self, problem: String) -> Error {
        let device = self.label.clone();
        let lost = match &self.trouble {
            Some(trouble) => trouble.lost.load(Ordering::SeqCst),
            None => !self.reads_back(),
        };
        if lost { Error::DeviceLost { device, problem } } else { Error::Device { device, problem } }
    }

    /// Whether a buffer can be read. The loss of an application's device is told to its own callback alone, and after it wgpu
    /// reports nothing; but nothing can be read back.
    fn reads_back(&self) -> bool {
        let scope = self.device.push_error_scope(wgpu::ErrorFilter::Validation);
        let usage = wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST;
        let desc = wgpu::BufferDescriptor { label: Some("probe"), size: 4, usage, mapped_at_creation: false };
        let (done, wait) = std::sync::mpsc::channel();
        self.device.create_buffer(&desc).slice(..).map_async(wgpu::MapMode::Read, move |read| {
            let _ = done.send(read.is_ok());
        });
        let polled = self.device.poll(wgpu::PollType::wait_indefinitely()).is_ok();
        let _ = pollster::block_on(scope.pop());
        polled && wait.try_recv().unwrap_or(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_binding_is_no_larger_than_indices_of_32_bits_reach() {
        let limits = |binding, buffer| {
            let (max_storage_buffer_binding_size, max_buffer_size) = (binding, buffer);
            wgpu::Limits { max_storage_buffer_binding_size, max_buffer_size, ..Default::default() }
        };
        assert_eq!(max_binding(&limits(1 << 36, 1 << 36)), 1 << 32);
        assert_eq!(max_binding(&limits(1 << 27, 1 << 36)), 1 << 27);
        assert_eq!(max_binding(&limits(1 << 36, 1 << 20)), 1 << 20);
    }
}
