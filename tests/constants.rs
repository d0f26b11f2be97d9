//! Tables of a plan: made once by each backend however many plans share them, and no larger than what reads them.

mod support {
    pub mod device;
    pub mod numbers;
    pub mod recording;
}

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use support::device::backends;
use support::recording::{Recording, run};
use ternion::files::Weights;
use ternion::tools::synthetic;
use ternion::unstable::models;
use ternion::unstable::models::{EmberNetConfig, LoadOptions, SigLipConfig, TextShape};
use ternion::unstable::ops::UnaryKind;
use ternion::unstable::plan::{SlotKind, Step};
use ternion::unstable::tensor::{DType, Pack, Spec};

#[test]
fn a_table_is_made_once_by_each_backend() {
    for (name, mut backend) in backends() {
        let made = Arc::new(AtomicUsize::new(0));
        for scale in [2.0, 3.0] {
            let (rig, count) = (Recording::new("constants"), made.clone());
            let table = rig.p.constant("five", Spec::fixed(&[1, 2], DType::F32), move || {
                count.fetch_add(1, Ordering::Relaxed);
                vec![5f32.to_bits(); 2]
            });
            let y = rig.p.unary(table, UnaryKind::Scale(scale));
            rig.p.output("y", y);
            let (plan, feed) = rig.finish();
            let found = run(backend.as_mut(), &plan, &feed, Step::FULL, &[y]);
            assert_eq!(found[0], vec![(5.0 * scale).to_bits(); 2], "{name}");
        }
        assert_eq!(made.load(Ordering::Relaxed), 1, "{name}");
    }
}

#[test]
fn the_table_of_angles_does_not_grow_with_the_sessions() {
    let config = EmberNetConfig {
        num_layers: 1,
        vision: SigLipConfig { num_hidden_layers: 1, ..EmberNetConfig::published().vision },
        ..EmberNetConfig::published()
    };
    let files = synthetic::embernet_of(config).expect("a model");
    let weights = Weights::open(&files).expect("it opens");
    let load = LoadOptions::anywhere(Pack::F16);
    let model = models::open_chat(&files, &weights, load).expect("it opens");
    for sessions in [1, 64] {
        let (kv_rows, context, kv_dtype) = (sessions * 512, 512, DType::F16);
        let shape = TextShape { max_rows: 4, max_outputs: 4, kv_rows, context, sessions, kv_dtype, images: false };
        let plan = model.record_text(&shape).expect("it records");
        let tables =
            plan.slots.iter().filter(|s| matches!(&s.kind, SlotKind::Constant(name, _) if name.contains("rotation")));
        let shapes: Vec<&[usize]> = tables.map(|s| &s.spec.shape[..]).collect();
        assert_eq!(shapes, [[512, 32, 2]], "{sessions} sessions");
    }
}
