//! Buffers: creation within limits, upload in pieces, reading back.

use std::ops::Range;

use crate::error::{Error, Result};
use crate::gpu::device::Device;

/// Bytes uploaded between two flushes, so that staging memory does not pile up.
const UPLOAD_CHUNK: usize = 64 << 20;

/// Bytes of a buffer for this many words: never empty, which no device allows.
pub fn bytes(words: usize) -> u64 {
    4 * words.max(4) as u64
}

/// A zeroed storage buffer.
///
/// # Errors
/// [`Error::OutOfMemory`] with the buffer's name if it is above the device's limits or memory is short.
pub fn storage(device: &Device, name: &str, words: usize) -> Result<wgpu::Buffer> {
    let bytes = bytes(words);
    if bytes > device.caps.max_binding {
        return Err(Error::OutOfMemory {
            what: name.to_owned(),
            needed: bytes,
            available: Some(device.caps.max_binding),
            device: format!("one buffer of {}", device.label),
        });
    }
    let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST | wgpu::BufferUsages::COPY_SRC;
    let desc = wgpu::BufferDescriptor { label: Some(name), size: bytes, usage, mapped_at_creation: false };
    device.guarded(name, bytes, || device.device.create_buffer(&desc))
}

/// A storage buffer with these words.
///
/// # Errors
/// As [`storage`].
pub fn upload(device: &Device, name: &str, words: &[u32]) -> Result<wgpu::Buffer> {
    let buffer = storage(device, name, words.len())?;
    let bytes: &[u8] = bytemuck::cast_slice(words);
    device.guarded(name, bytes.len() as u64, || {
        for (i, chunk) in bytes.chunks(UPLOAD_CHUNK).enumerate() {
            device.queue.write_buffer(&buffer, (i * UPLOAD_CHUNK) as u64, chunk);
            device.queue.submit([]);
        }
    })?;
    Ok(buffer)
}

/// A buffer from some byte on: what a slot is bound to.
#[derive(Debug, Clone)]
pub struct Region {
    /// The buffer.
    pub buffer: wgpu::Buffer,
    /// The first byte.
    pub from: u64,
}

impl Region {
    /// A whole buffer.
    pub fn whole(buffer: wgpu::Buffer) -> Self {
        Region { buffer, from: 0 }
    }

    /// Bytes of it.
    pub fn size(&self) -> u64 {
        self.buffer.size() - self.from
    }

    /// What a bind group takes.
    pub fn binding(&self) -> wgpu::BindingResource<'_> {
        wgpu::BindingResource::Buffer(wgpu::BufferBinding { buffer: &self.buffer, offset: self.from, size: None })
    }
}

/// Reads back ranges of words through one staging buffer that is kept and grown.
#[derive(Debug, Default)]
pub struct Readback {
    staging: Option<wgpu::Buffer>,
}

impl Readback {
    /// Words of buffers, after everything submitted before has run.
    ///
    /// # Errors
    /// [`Error::DeviceLost`] if the device is lost.
    pub fn read(&mut self, device: &Device, ranges: &[(&wgpu::Buffer, Range<usize>)]) -> Result<Vec<Vec<u32>>> {
        let total: u64 = ranges.iter().map(|(_, r)| 4 * r.len() as u64).sum();
        if total == 0 {
            return Ok(vec![Vec::new(); ranges.len()]);
        }
        let staging = self.staging(device, total)?;
        let mut encoder = device.device.create_command_encoder(&Default::default());
        let mut at = 0;
        for (buffer, range) in ranges {
            let bytes = 4 * range.len() as u64;
            encoder.copy_buffer_to_buffer(buffer, 4 * range.start as u64, &staging, at, bytes);
            at += bytes;
        }
        device.queue.submit([encoder.finish()]);
        let (done, wait) = std::sync::mpsc::channel();
        staging.slice(..total).map_async(wgpu::MapMode::Read, move |r| {
            let _ = done.send(r);
        });
        let failed = |e: String| device.failure(format!("reading back: {e}"));
        device.device.poll(wgpu::PollType::wait_indefinitely()).map_err(|e| failed(e.to_string()))?;
        device.check()?;
        wait.recv().map_err(|e| failed(e.to_string()))?.map_err(|e| failed(e.to_string()))?;
        let view = staging.slice(..total).get_mapped_range().map_err(|e| failed(e.to_string()))?;
        let mut words: &[u32] = &bytemuck::pod_collect_to_vec::<u8, u32>(&view);
        let mut out = Vec::with_capacity(ranges.len());
        for (_, range) in ranges {
            let (head, tail) = words.split_at(range.len());
            out.push(head.to_vec());
            words = tail;
        }
        drop(view);
        staging.unmap();
        Ok(out)
    }

    fn staging(&mut self, device: &Device, bytes: u64) -> Result<wgpu::Buffer> {
        if let Some(buffer) = self.staging.as_ref().filter(|b| b.size() >= bytes) {
            return Ok(buffer.clone());
        }
        let usage = wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST;
        // A power of two may be above what the device allows, where the read itself is not.
        let size = bytes.next_power_of_two().min(device.device.limits().max_buffer_size).max(bytes);
        let desc = wgpu::BufferDescriptor { label: Some("readback"), size, usage, mapped_at_creation: false };
        let buffer = device.guarded("readback", size, || device.device.create_buffer(&desc))?;
        self.staging = Some(buffer.clone());
        Ok(buffer)
    }
}
