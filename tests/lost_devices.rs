//! A device that is lost while a session generates: what was yielded stays, and an engine that is opened again goes on with it.

mod support {
    pub mod demo;
    pub mod device;
}

use support::demo::{generated, greedy, picture};
use support::device::device;
use ternion::engine::{DeviceChoice, Options};
use ternion::gpu::Device;
use ternion::{Engine, Error, ModelFiles, Session};

/// Tokens of an answer.
const ALL: usize = 12;

fn options(device: DeviceChoice) -> Options {
    Options { device, context: Some(256), ..Options::default() }
}

fn asked(engine: &Engine) -> Session {
    let mut session = engine.session().expect("a session");
    session.push_image(&picture()).expect("an image");
    session.push_question("What color is the circle?").expect("a question");
    session
}

/// An adapter's device that the test has a handle of as well.
fn opened() -> Option<(wgpu::Device, Device)> {
    device()?;
    let backends =
        wgpu::Backends::from_env().unwrap_or(wgpu::Backends::VULKAN | wgpu::Backends::METAL | wgpu::Backends::DX12);
    let mut desc = wgpu::InstanceDescriptor::new_without_display_handle_from_env();
    desc.backends = backends;
    let adapters = pollster::block_on(wgpu::Instance::new(desc).enumerate_adapters(backends));
    let adapter = adapters.first()?;
    let desc = wgpu::DeviceDescriptor {
        required_features: Device::wanted_features(adapter),
        required_limits: Device::wanted_limits(adapter),
        ..Default::default()
    };
    let (device, queue) = pollster::block_on(adapter.request_device(&desc)).expect("a device");
    let own = Device::from_wgpu(adapter, device.clone(), queue).expect("a device that does");
    Some((device, own))
}

#[test]
fn a_session_goes_on_where_a_lost_device_stopped_it() {
    let Some((handle, own)) = opened() else { return };
    let engine = Engine::demo(options(DeviceChoice::Opened(own))).expect("the demo model");
    let want = generated(&mut asked(&engine), greedy(ALL)).expect("an answer");
    let mut session = asked(&engine);
    let asked_tokens = session.tokens().len();

    let mut stream = session.generate(greedy(ALL)).expect("a stream");
    let mut found: Vec<u32> = stream.by_ref().take(3).map(|token| token.expect("a token").id).collect();
    handle.destroy();
    let mut error = None;
    for token in stream {
        match token {
            Ok(token) => found.push(token.id),
            Err(e) => error = Some(e),
        }
    }
    // Tokens of a burst that had run come first.
    let error = error.expect("the stream ends with an error");
    assert!(matches!(error, Error::DeviceLost { .. }), "{error:?}");
    assert!(found.len() < ALL && found == want[..found.len()], "{found:?}, expected {want:?}");
    assert_eq!(session.tokens()[asked_tokens..], found, "what was yielded stays");

    let again = generated(&mut session, greedy(1));
    assert!(matches!(again, Err(Error::DeviceLost { .. })), "{again:?}");
    assert!(matches!(session.fork(), Err(Error::DeviceLost { .. })));
    assert!(engine.reopen().is_err(), "the application's device is the lost one");

    let other = Engine::demo(options(DeviceChoice::Gpu)).expect("the demo model");
    let mut moved = session.on(&other).expect("a session");
    assert_eq!((moved.tokens(), moved.images()), (session.tokens(), 1));
    found.extend(generated(&mut moved, greedy(ALL - found.len())).expect("the rest"));
    assert_eq!(found, want);
}

#[test]
fn an_engine_opens_again_as_it_was() {
    let gpu = device().map(|_| DeviceChoice::Gpu);
    for choice in [DeviceChoice::Cpu].into_iter().chain(gpu) {
        let engine = Engine::demo(options(choice)).expect("the demo model");
        let mut session = asked(&engine);
        let want = generated(&mut session, greedy(ALL)).expect("an answer");
        let again = engine.reopen().expect("the same model");
        drop(engine);
        assert_eq!(generated(&mut asked(&again), greedy(ALL)).expect("an answer"), want);
        session.truncate(session.tokens().len() - ALL);
        assert_eq!(generated(&mut session.on(&again).expect("a session"), greedy(ALL)).expect("an answer"), want);
    }
}

#[test]
fn a_session_moves_to_no_other_model_and_to_no_shorter_context() {
    let engine = Engine::demo(options(DeviceChoice::Cpu)).expect("the demo model");
    let session = asked(&engine);
    let short = Options { context: Some(session.len() - 1), ..options(DeviceChoice::Cpu) };
    let short = Engine::demo(short).expect("the demo model");
    assert!(matches!(session.on(&short), Err(Error::ContextFull { .. })));
    let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/embernet/oddgrid");
    let small = || Options { context: Some(64), ..options(DeviceChoice::Cpu) };
    let other = Engine::open(golden, small()).expect("a golden model");
    assert!(matches!(session.on(&other), Err(Error::Argument { .. })));
    let bytes = |name: &str| std::fs::read(format!("{golden}/{name}")).expect("a golden file");
    let files = ["model.safetensors", "config.json", "siglip_vision_config.json"].map(|name| (name, bytes(name)));
    let given = Engine::open(ModelFiles::from_bytes("m", files), small()).expect("the model");
    assert!(matches!(given.reopen(), Err(Error::Argument { .. })));
}
