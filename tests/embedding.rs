//! What an application that embeds the library does: its own device and bytes, answers that it keeps, and ending whatever runs.
#![cfg(feature = "demo")]

use std::ops::ControlFlow;
use std::sync::Arc;
use std::thread;

use ternion::engine::{Cancel, DeviceChoice, EngineBuilder, Generation, StopReason};
use ternion::gpu::{Adapters, Device};
use ternion::{Engine, Error, GenerateOptions, Image, ModelFiles, wgpu};

#[path = "../examples/draw_and_ask.rs"]
#[allow(dead_code)] // Its `main` is the example's.
mod draw_and_ask;

const PICTURE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/shapes/samples/spatial_scene_100000.png");
const QUESTION: &str = "What color is the circle?";

fn builder() -> EngineBuilder<'static> {
    Engine::builder().device(DeviceChoice::Cpu)
}

fn answer(engine: &Engine) -> String {
    let mut session = engine.session().unwrap();
    session.push_image(&Image::open(PICTURE).unwrap()).unwrap();
    session.push_question(QUESTION).unwrap();
    let tokens = session.generate(GenerateOptions::default()).unwrap();
    tokens.map(|token| token.unwrap().text).collect()
}

#[test]
fn an_answer_has_no_space_in_front_and_raw_text_keeps_it() {
    let engine = builder().open_demo().unwrap();
    let text = answer(&engine);
    assert!(!text.is_empty() && text == text.trim_start(), "{text:?}");
    let mut session = engine.session().unwrap();
    session.push_image(&Image::open(PICTURE).unwrap()).unwrap();
    session.push_question(QUESTION).unwrap();
    let prompt = session.tokens().to_vec();
    session.reset_text();
    session.push_tokens(&prompt).unwrap();
    let raw: String = session.generate(GenerateOptions::default()).unwrap().map(|token| token.unwrap().text).collect();
    assert_eq!(raw.trim_start(), text);
    assert_ne!(raw, text, "behind text that was pushed as it is, nothing is left out");
}

#[test]
fn a_model_of_owned_bytes_answers_and_is_freed() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/shapes/model");
    let read = |name: &str| (name.to_owned(), Arc::<[u8]>::from(std::fs::read(format!("{folder}/{name}")).unwrap()));
    let files = ["model.safetensors", "config.json", "tokenizer.json"].map(read);
    let checkpoint = files[0].1.clone();
    let engine = builder().open(ModelFiles::from_bytes("a download", files)).unwrap();
    assert_eq!(answer(&engine), answer(&builder().open_demo().unwrap()));
    drop(engine);
    assert_eq!(Arc::strong_count(&checkpoint), 1);
    let error = builder().open(ModelFiles::from_bytes("a download", [("config.json", &b"{}"[..])])).unwrap_err();
    assert!(error.to_string().contains("a download"), "{error}");
}

/// A running answer in a struct of the application's.
struct Chat {
    running: Generation,
}

#[test]
fn a_generation_is_kept_sent_to_a_thread_and_gives_its_session_back() {
    let engine = builder().open_demo().unwrap();
    let text = answer(&engine);
    let mut session = engine.session().unwrap();
    session.push_image(&Image::open(PICTURE).unwrap()).unwrap();
    let refused =
        session.into_generation(GenerateOptions { max_tokens: Some(1 << 20), ..Default::default() }).unwrap_err();
    assert!(matches!(refused.error, Error::ContextFull { needed: 1048576.., .. }), "{refused}");
    let mut session = refused.session;
    session.push_question(QUESTION).unwrap();
    let chat = Chat { running: session.into_generation(GenerateOptions::default()).unwrap() };
    let (mut session, found) = thread::spawn(move || {
        let mut running = chat.running;
        let text: String = running.by_ref().map(|token| token.unwrap().text).collect();
        assert_eq!(running.stop_reason(), Some(StopReason::Eos));
        (running.finish(), text)
    })
    .join()
    .unwrap();
    assert_eq!(found, text);
    session.push_question(QUESTION).unwrap();
    assert!(session.generate(GenerateOptions::default()).unwrap().next().is_some());
}

#[test]
fn loading_ends_where_its_callback_breaks_or_it_is_cancelled() {
    let mut seen = 0;
    let stop = |_| {
        seen += 1;
        if seen < 3 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    };
    let error = builder().progress(stop).open_demo().unwrap_err();
    assert!(matches!(error, Error::Cancelled(_)), "{error}");
    assert_eq!(seen, 3);
    let cancel = Cancel::new();
    cancel.cancel();
    assert!(matches!(builder().cancel(cancel.clone()).open_demo(), Err(Error::Cancelled(_))));
    cancel.reset();
    assert!(builder().cancel(cancel).open_demo().is_ok());
}

#[test]
fn images_prompts_and_texts_end_when_they_are_cancelled_and_the_session_goes_on() {
    for device in [DeviceChoice::Cpu, DeviceChoice::Gpu] {
        if device == DeviceChoice::Gpu && Adapters::find().best(true).is_none() {
            continue;
        }
        let engine = Engine::builder().device(device).open_demo().unwrap();
        let (text, cancel) = (answer(&engine), Cancel::new());
        let mut session = engine.session().unwrap();
        session.cancel_with(cancel.clone());
        cancel.cancel();
        let image = Image::open(PICTURE).unwrap();
        assert!(matches!(session.push_image(&image), Err(Error::Cancelled(_))));
        cancel.reset();
        session.push_image(&image).unwrap();
        session.push_question(QUESTION).unwrap();
        let asked = session.tokens().len();
        cancel.cancel();
        let mut stream = session.generate(GenerateOptions::default()).unwrap();
        assert!(stream.next().is_none(), "the prompt does not run");
        assert_eq!(stream.stop_reason(), Some(StopReason::Cancelled));
        cancel.reset();
        let mut stream = session.generate(GenerateOptions::default()).unwrap();
        let first = stream.next().unwrap().unwrap();
        cancel.cancel();
        assert!(stream.next().is_none());
        assert_eq!((stream.stop_reason(), stream.stats().generated), (Some(StopReason::Cancelled), 1));
        assert_eq!(session.tokens()[asked..], [first.id], "what was yielded stays");
        cancel.reset();
        let rest = session.generate(GenerateOptions::default()).unwrap();
        let rest: String = rest.map(|token| token.unwrap().text).collect();
        assert_eq!(first.text + &rest, text);
    }
}

#[test]
fn an_application_s_device_runs_the_model_and_keeps_its_own_callbacks() {
    let backends =
        wgpu::Backends::from_env().unwrap_or(wgpu::Backends::VULKAN | wgpu::Backends::METAL | wgpu::Backends::DX12);
    let mut desc = wgpu::InstanceDescriptor::new_without_display_handle_from_env();
    desc.backends = backends;
    let adapters = pollster::block_on(wgpu::Instance::new(desc).enumerate_adapters(backends));
    let Some(adapter) = adapters.first() else {
        assert!(std::env::var("REQUIRE_GPU").as_deref() != Ok("1"), "REQUIRE_GPU=1, and there is no adapter");
        return;
    };
    let request = |features, limits| {
        let desc =
            wgpu::DeviceDescriptor { required_features: features, required_limits: limits, ..Default::default() };
        let (device, queue) = pollster::block_on(adapter.request_device(&desc)).unwrap();
        device.on_uncaptured_error(Arc::new(|error| panic!("the application's callback got {error}")));
        (device, queue)
    };
    let (device, queue) = request(wgpu::Features::empty(), wgpu::Limits::downlevel_defaults());
    let error = Device::from_wgpu(adapter, device, queue).unwrap_err();
    assert!(matches!(error, Error::Unsupported { .. }) && error.to_string().contains("max_"), "{error}");

    let text = answer(&builder().open_demo().unwrap());
    let sets = [
        (wgpu::Features::empty(), wgpu::Limits::default()),
        (Device::wanted_features(adapter), Device::wanted_limits(adapter)),
    ];
    for (features, limits) in sets {
        let (device, queue) = request(features, limits);
        let own = Device::from_wgpu(adapter, device.clone(), queue.clone()).unwrap();
        let engine = Engine::builder().device(DeviceChoice::Opened(own)).open_demo().unwrap();
        assert_eq!(answer(&engine), text);
        // The application goes on with the same device.
        let size = wgpu::Extent3d { width: 4, height: 4, depth_or_array_layers: 1 };
        let _texture = device.create_texture(&wgpu::TextureDescriptor {
            label: None,
            size,
            mip_level_count: 1,
            sample_count: 1,
            dimension: wgpu::TextureDimension::D2,
            format: wgpu::TextureFormat::Rgba8Unorm,
            usage: wgpu::TextureUsages::RENDER_ATTACHMENT,
            view_formats: &[],
        });
        queue.submit([]);
        assert_eq!(answer(&engine), text);
    }
}

#[test]
fn a_program_asks_about_what_it_draws_on_the_same_device() {
    if Adapters::find().best(true).is_some() {
        let answers = draw_and_ask::ask(None).unwrap();
        assert_eq!(answers.iter().map(|a| a.trim()).collect::<Vec<_>>(), ["green", "purple"]);
    }
}
