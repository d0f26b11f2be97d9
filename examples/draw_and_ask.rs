//! A program that draws with wgpu, and asks the built-in model about its picture on the same device: one adapter, one heap.
//!
//! `cargo run --release --example draw_and_ask [-- PICTURE.png]`; without an adapter it says so.

use std::error::Error;
use std::sync::mpsc;

use ternion::engine::DeviceChoice;
use ternion::gpu::Device;
use ternion::wgpu;
use ternion::{Engine, GenerateOptions, Image, ModelFiles};

/// Pixels of a side. A row of them is a multiple of what copies to buffers need.
const SIDE: u32 = 256;

/// A triangle over everything, whose pixels are those of a scene: a green square and a purple circle.
const SHADER: &str = "
@vertex
fn corner(@builtin(vertex_index) i: u32) -> @builtin(position) vec4<f32> {
    return vec4<f32>(f32(i % 2u) * 4.0 - 1.0, f32(i / 2u) * 4.0 - 1.0, 0.0, 1.0);
}

@fragment
fn pixel(@builtin(position) at: vec4<f32>) -> @location(0) vec4<f32> {
    let from_square = abs(at.xy - vec2<f32>(56.0, 154.0));
    if from_square.x < 28.0 && from_square.y < 28.0 { return vec4<f32>(0.1, 0.55, 0.22, 1.0); }
    if distance(at.xy, vec2<f32>(205.0, 154.0)) < 29.0 { return vec4<f32>(0.56, 0.1, 0.68, 1.0); }
    return vec4<f32>(0.95, 0.93, 0.94, 1.0);
}
";

fn main() -> Result<(), Box<dyn Error>> {
    let answers = ask(std::env::args().nth(1).as_deref())?;
    if answers.is_empty() {
        println!("no adapter");
    }
    answers.iter().zip(QUESTIONS).for_each(|(answer, question)| println!("{question} {answer}"));
    Ok(())
}

const QUESTIONS: [&str; 2] = ["What color is the square?", "What color is the circle?"];

/// Draws, keeps the picture in a file if there is one, and asks; no answers without an adapter.
pub fn ask(file: Option<&str>) -> Result<Vec<String>, Box<dyn Error>> {
    let Some((adapter, device, queue)) = pollster::block_on(open())? else { return Ok(Vec::new()) };
    // The engine gets handles: device and queue stay the program's.
    let own = Device::from_wgpu(&adapter, device.clone(), queue.clone())?;
    let engine = Engine::builder().device(DeviceChoice::Opened(own)).open(ModelFiles::demo()?)?;
    println!("{}", engine.report().device);

    let picture = draw(&device, &queue)?;
    if let Some(file) = file {
        image::save_buffer(file, &picture.rgb, SIDE, SIDE, image::ColorType::Rgb8)?;
    }
    let mut session = engine.session()?;
    session.push_image(&picture)?;
    let mut answers = Vec::new();
    for question in QUESTIONS {
        let mut asked = session.fork()?;
        asked.push_question(question)?;
        let answer: ternion::Result<String> =
            asked.generate(GenerateOptions::default())?.map(|token| token.map(|t| t.text)).collect();
        answers.push(answer?);
    }
    Ok(answers)
}

/// An adapter with a device that has what kernels like to have, beside whatever the program itself needs.
async fn open() -> Result<Option<(wgpu::Adapter, wgpu::Device, wgpu::Queue)>, wgpu::RequestDeviceError> {
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle_from_env());
    let Ok(adapter) = instance.request_adapter(&wgpu::RequestAdapterOptions::default()).await else {
        return Ok(None);
    };
    let (required_features, required_limits) = (Device::wanted_features(&adapter), Device::wanted_limits(&adapter));
    let wanted = wgpu::DeviceDescriptor { required_features, required_limits, ..Default::default() };
    let (device, queue) = adapter.request_device(&wanted).await?;
    Ok(Some((adapter, device, queue)))
}

/// Draws the scene into a texture, and reads it back.
fn draw(device: &wgpu::Device, queue: &wgpu::Queue) -> Result<Image, Box<dyn Error>> {
    let size = wgpu::Extent3d { width: SIDE, height: SIDE, depth_or_array_layers: 1 };
    let format = wgpu::TextureFormat::Rgba8Unorm;
    let texture = device.create_texture(&wgpu::TextureDescriptor {
        label: Some("scene"),
        size,
        mip_level_count: 1,
        sample_count: 1,
        dimension: wgpu::TextureDimension::D2,
        format,
        usage: wgpu::TextureUsages::RENDER_ATTACHMENT | wgpu::TextureUsages::COPY_SRC,
        view_formats: &[],
    });
    let buffer = device.create_buffer(&wgpu::BufferDescriptor {
        label: Some("pixels"),
        size: u64::from(4 * SIDE * SIDE),
        usage: wgpu::BufferUsages::COPY_DST | wgpu::BufferUsages::MAP_READ,
        mapped_at_creation: false,
    });
    let view = texture.create_view(&wgpu::TextureViewDescriptor::default());
    let mut encoder = device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
    let attachment = wgpu::RenderPassColorAttachment {
        view: &view,
        depth_slice: None,
        resolve_target: None,
        ops: wgpu::Operations { load: wgpu::LoadOp::Clear(wgpu::Color::WHITE), store: wgpu::StoreOp::Store },
    };
    let mut pass = encoder.begin_render_pass(&wgpu::RenderPassDescriptor {
        color_attachments: &[Some(attachment)],
        ..Default::default()
    });
    pass.set_pipeline(&pipeline(device, format));
    pass.draw(0..3, 0..1);
    drop(pass);
    let layout = wgpu::TexelCopyBufferLayout { offset: 0, bytes_per_row: Some(4 * SIDE), rows_per_image: None };
    encoder.copy_texture_to_buffer(
        texture.as_image_copy(),
        wgpu::TexelCopyBufferInfo { buffer: &buffer, layout },
        size,
    );
    queue.submit([encoder.finish()]);
    let (done, mapped) = mpsc::channel();
    buffer.slice(..).map_async(wgpu::MapMode::Read, move |result| drop(done.send(result)));
    device.poll(wgpu::PollType::wait_indefinitely())?;
    mapped.recv()??;
    let pixels = buffer.slice(..).get_mapped_range()?;
    let rgb = pixels.chunks_exact(4).flat_map(|pixel| [pixel[0], pixel[1], pixel[2]]).collect();
    Ok(Image::from_rgb(SIDE as usize, SIDE as usize, rgb)?)
}

fn pipeline(device: &wgpu::Device, format: wgpu::TextureFormat) -> wgpu::RenderPipeline {
    let source = wgpu::ShaderSource::Wgsl(SHADER.into());
    let module = device.create_shader_module(wgpu::ShaderModuleDescriptor { label: Some("scene"), source });
    device.create_render_pipeline(&wgpu::RenderPipelineDescriptor {
        label: Some("scene"),
        layout: None,
        vertex: wgpu::VertexState {
            module: &module,
            entry_point: Some("corner"),
            compilation_options: Default::default(),
            buffers: &[],
        },
        primitive: Default::default(),
        depth_stencil: None,
        multisample: Default::default(),
        fragment: Some(wgpu::FragmentState {
            module: &module,
            entry_point: Some("pixel"),
            compilation_options: Default::default(),
            targets: &[Some(format.into())],
        }),
        multiview_mask: None,
        cache: None,
    })
}
