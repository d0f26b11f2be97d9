//! How many launches a decoded token takes on a GPU, counted without one.

use ternion::files::Weights;
use ternion::tools::synthetic::PublishedModel;
use ternion::unstable::models::{self, LoadOptions, TextShape};
use ternion::unstable::plan::{Caps, Plan, PlanBuilder, Step, Variant};
use ternion::unstable::tensor::{DType, Pack};

/// A discrete or integrated GPU of the last years.
const GPU: Caps = Caps { subgroups: true, dot4: true, max_binding: 2 << 30, ..Caps::PLAIN };
/// One that computes on the CPU.
const SOFTWARE: Caps = Caps { cpu_driver: true, software_subgroups: true, ..GPU };

/// The plan of a decoded token of a published model, and its layers.
fn plan(name: &str, caps: &Caps) -> (Plan, usize) {
    let files = name.parse::<PublishedModel>().expect("a name").files().expect("a model");
    let weights = Weights::open(files.clone()).expect("it opens");
    let options = LoadOptions { max_binding: caps.max_binding, ..LoadOptions::anywhere(Pack::F16) };
    let model = models::open_chat(files, &weights, options).expect("it is a model");
    let shape = TextShape {
        max_rows: 1,
        max_outputs: 1,
        kv_rows: 2048,
        context: 2048,
        sessions: 1,
        kv_dtype: DType::F16,
        images: false,
    };
    (model.text_plan(PlanBuilder::new().for_device(caps), &shape).expect("it records"), model.info().layers)
}

/// Launches of the usual variants, with a short context.
fn launches(plan: &Plan, caps: &Caps) -> usize {
    let step = Step::new(1, 1, 64);
    let count = |variant: &Variant| {
        variant.kernels().filter(|kernel| kernel.grid.0.iter().all(|extent| extent.resolve(&step) > 0)).count()
    };
    plan.nodes.iter().map(|node| count(&plan.variants(node, caps).1.take(None))).sum()
}

#[test]
fn a_layer_takes_five_launches_on_a_gpu() {
    for caps in GPU.subsets() {
        for name in ["embernet", "bonsai-1.7b", "ternary-bonsai-4b", "bonsai-8b", "bitnet-2b-4t", "falcon3-1b"] {
            let (plan, layers) = plan(name, &caps);
            assert_eq!(launches(&plan, &caps), 5 * layers + 5, "{name}, {caps:?}:\n{plan}");
        }
    }
}

/// Codes of a row this wide do not fit in the workgroup memory that every device has.
#[test]
fn a_row_that_is_too_wide_takes_launches_of_its_own() {
    for name in ["llama3-8b-1.58", "falcon3-7b"] {
        let (plan, layers) = plan(name, &GPU);
        assert_eq!(launches(&plan, &GPU), 7 * layers + 5, "{name}:\n{plan}");
    }
}

#[test]
fn nothing_is_made_again_where_a_cpu_computes() {
    for (name, op) in [("embernet", "route_swiglu"), ("bonsai-1.7b", "group_linear")] {
        let has = |caps| plan(name, caps).0.nodes.iter().any(|node| node.op.name() == op);
        assert!(has(&GPU) && !has(&SOFTWARE), "{name}");
    }
}
