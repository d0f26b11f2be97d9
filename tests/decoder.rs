//! The decoder that a description makes: a dense feed-forward part is what a mixture of one expert is, on every backend.

mod support {
    pub mod device;
    pub mod golden;
    pub mod model_stages;
    pub mod numbers;
}

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use support::model_stages::{PreparedPlan, devices, row};
use support::numbers::{Noise, bits, compare};
use ternion::files::{ModelFiles, StorageDType, TensorInfo, TensorSource, Weights};
use ternion::unstable::cpu::Cpu;
use ternion::unstable::models::{
    AttentionSpec, BitLinearSpec, Decoder, DecoderSpec, Ffn, GatedSpec, HeadSpec, LayerSpec, LinearSpec, LoadOptions,
    Mixer, MoeSpec, Names, StoredSpec, TextShape, load_model, requests, slots,
};
use ternion::unstable::ops::{Act, ActQuant, AttentionShape, Experts, GateClamp, NormClamp, RmsNorm, Rotation, Row};
use ternion::unstable::plan::{Backend, PlanBuilder, Step};
use ternion::unstable::quant::WeightQuant;
use ternion::unstable::tensor::{DType, Pack};

const VOCAB: usize = 50;
const CAPACITY: usize = 40;
const QUANT: WeightQuant = WeightQuant::SignMean;
const LINEAR: BitLinearSpec = BitLinearSpec {
    norm: RmsNorm::new(1e-6),
    quant: ActQuant { max_code: 127.0, bound: f32::INFINITY, floor: 1e-5 },
    norm_name: "norm.weight",
};
const PLAIN: Act = Act::SiLu { clamp: None };

/// Names of a mixture of one expert.
const MOE: Names = Names {
    table: "embed.weight",
    head: "lm_head",
    norm: "norm.weight",
    layers: "layers",
    mixer_norm: "norm1.weight",
    attention: "self_attn",
    qkv: ["q_proj", "k_proj", "v_proj"],
    fused_qkv: "qkv_proj",
    qk_norms: ["q_norm.weight", "k_norm.weight"],
    out: "o_proj",
    out_norm: "out_norm.weight",
    ffn_norm: "norm2.weight",
    ffn: "mlp",
    gate_up: ["gate_proj", "up_proj"],
    down: "down_proj",
    down_norm: "down_norm.weight",
    router: "router",
    experts: "experts",
    shared_expert: "shared_expert",
    shared_experts: "shared_experts",
};
/// The same tensors as those of a dense decoder.
const DENSE: Names = Names { ffn: "mlp.experts.0", ..MOE };

fn spec(ffn: impl Fn(GatedSpec) -> Ffn, act: Act) -> DecoderSpec {
    let norm = RmsNorm::new(1e-6);
    let heads = AttentionShape { heads: 4, kv_heads: 2, d: 8 };
    let layer = LayerSpec {
        mixer_norm: norm,
        mixer: Mixer::Attention(AttentionSpec {
            heads,
            rotation: Rotation::plain(1e4, heads.d),
            qk_norm: None,
            sub_norm: None,
        }),
        ffn_norm: norm,
        ffn: ffn(GatedSpec { d_ff: 72, act }),
    };
    DecoderSpec {
        vocab: VOCAB,
        width: 40,
        embed_bound: f32::INFINITY,
        layers: vec![layer; 2],
        norm,
        linear: LinearSpec::BitLinear(LINEAR),
        head: HeadSpec::Dense,
    }
}

fn dense(act: Act) -> DecoderSpec {
    spec(|gated| Ffn::Gated { gated, sub_norm: None }, act)
}

fn mixture(act: Act) -> DecoderSpec {
    let experts = Experts { k: 1, n: 1, shared: 0 };
    spec(|expert| Ffn::Moe(MoeSpec { experts, expert, linear: LINEAR, bound: f32::INFINITY }), act)
}

/// Random tensors.
#[derive(Debug, Default)]
struct Random(Vec<TensorInfo>);

impl TensorSource for Random {
    fn name(&self) -> &str {
        "random tensors"
    }

    fn file(&self, _: &str) -> Option<Cow<'_, [u8]>> {
        None
    }

    fn tensors(&self) -> Vec<TensorInfo> {
        self.0.clone()
    }

    fn metadata(&self) -> BTreeMap<String, String> {
        BTreeMap::new()
    }

    fn read(&self, tensor: &str, elements: Range<usize>) -> ternion::Result<Vec<u8>> {
        let at = self.0.iter().position(|info| info.name == tensor).expect("one of the tensors");
        let all = Noise(at as u64).f32s(self.0[at].shape.iter().product(), 1.0);
        let is_norm = self.0[at].shape.len() == 1 && tensor.ends_with(".weight");
        Ok(all[elements].iter().flat_map(|v| if is_norm { 1.0 + 0.2 * v } else { *v }.to_le_bytes()).collect())
    }
}

/// Random weights for all tensors of the mixture.
fn weights() -> Weights {
    let open = |infos| Weights::open(ModelFiles::Source(Arc::new(Random(infos)))).expect("a source");
    let wanted = requests(&open(Vec::new()), QUANT, |w| Decoder::load(w, &MOE, &mixture(PLAIN)));
    let mut infos: Vec<TensorInfo> =
        wanted.into_iter().map(|w| TensorInfo { name: w.name, stored: StorageDType::F32, shape: w.shape }).collect();
    infos.sort_by(|a, b| a.name.cmp(&b.name));
    infos.dedup_by(|a, b| a.name == b.name);
    open(infos)
}

/// A dense decoder of matrices as the file holds them.
fn stored() -> DecoderSpec {
    let spec = StoredSpec { quantisation: None, act: None };
    DecoderSpec { linear: LinearSpec::Stored(spec), head: HeadSpec::Stored { spec, tied: true }, ..dense(PLAIN) }
}

/// The same tensors with queries, keys and values in one.
#[derive(Debug)]
struct Fused(Random);

/// What stands at the end of the names of queries, keys and values, and of their one tensor.
const ENDS: [&str; 2] = ["weight", "bias"];

impl Fused {
    /// The tensors that are in the one of this name.
    fn parts(&self, tensor: &str) -> Vec<TensorInfo> {
        let of = |q: &str| self.0.0.iter().find(|info| info.name == tensor.replace("qkv_proj", q)).expect("a part");
        ["q_proj", "k_proj", "v_proj"].map(|q| of(q).clone()).to_vec()
    }
}

impl TensorSource for Fused {
    fn name(&self) -> &str {
        self.0.name()
    }

    fn file(&self, name: &str) -> Option<Cow<'_, [u8]>> {
        self.0.file(name)
    }

    fn tensors(&self) -> Vec<TensorInfo> {
        let is = |info: &TensorInfo, q: &str| ENDS.iter().any(|end| info.name.ends_with(&format!("{q}.{end}")));
        let mut all = Vec::new();
        for info in self.0.tensors().into_iter().filter(|info| !is(info, "k_proj") && !is(info, "v_proj")) {
            if !is(&info, "q_proj") {
                all.push(info);
                continue;
            }
            let name = info.name.replace("q_proj", "qkv_proj");
            let rows = self.parts(&name).iter().map(|part| part.shape[0]).sum();
            all.push(TensorInfo { name, shape: [&[rows], &info.shape[1..]].concat(), ..info });
        }
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all
    }

    fn metadata(&self) -> BTreeMap<String, String> {
        self.0.metadata()
    }

    fn read(&self, tensor: &str, elements: Range<usize>) -> ternion::Result<Vec<u8>> {
        if !tensor.contains("qkv_proj") {
            return self.0.read(tensor, elements);
        }
        let mut all = Vec::new();
        for part in self.parts(tensor) {
            all.extend(self.0.read(&part.name, 0..part.shape.iter().product())?);
        }
        Ok(all[4 * elements.start..4 * elements.end].to_vec())
    }
}

/// The tensors of [`stored`], with biases in one layer or none.
fn stored_tensors(biases: bool) -> Random {
    let nothing = Weights::open(ModelFiles::Source(Arc::new(Random::default()))).expect("a source");
    let wanted = requests(&nothing, QUANT, |w| Decoder::load(w, &DENSE, &stored()));
    let f32s = |name: String, shape: Vec<usize>| TensorInfo { name, stored: StorageDType::F32, shape };
    let mut infos: Vec<TensorInfo> = wanted.into_iter().map(|w| f32s(w.name, w.shape)).collect();
    infos.sort_by(|a, b| a.name.cmp(&b.name));
    infos.dedup_by(|a, b| a.name == b.name);
    // Behind the others, which keep their numbers.
    let layer = infos.iter().filter(|info| info.name.starts_with("layers.1.") && info.shape.len() == 2);
    let more: Vec<TensorInfo> = layer
        .filter(|_| biases)
        .map(|info| f32s(info.name.replace(".weight", ".bias"), info.shape[..1].to_vec()))
        .collect();
    infos.extend(more);
    Random(infos)
}

#[test]
fn stored_matrices_may_be_fused_and_cut_and_have_biases() {
    let open = |source: Arc<dyn TensorSource>| Weights::open(ModelFiles::Source(source)).expect("a source");
    for (device, mut backend) in devices() {
        let mut found = |weights: &Weights, max_binding| {
            let options = LoadOptions { max_binding, ..LoadOptions::anywhere(Pack::F32) };
            logits_with(weights, &DENSE, &stored(), options, backend.as_mut(), 5)
        };
        let mut wanted: Vec<Vec<f32>> = Vec::new();
        for biases in [false, true] {
            let whole = found(&open(Arc::new(stored_tensors(biases))), u64::MAX);
            let fused = found(&open(Arc::new(Fused(stored_tensors(biases)))), u64::MAX);
            // A piece has a few rows of a matrix.
            let cut = found(&open(Arc::new(stored_tensors(biases))), 1 << 10);
            for (what, other) in [("fused", fused), ("cut", cut)] {
                compare(&other, &whole, 1e-5).unwrap_or_else(|e| panic!("{device}, {what}, biases {biases}: {e}"));
            }
            wanted.push(whole);
        }
        assert!(compare(&wanted[0], &wanted[1], 0.1).is_err(), "{device}: biases change nothing");
    }
}

/// Logits of every token of a text of `n` tokens, in one step.
fn logits(weights: &Weights, names: &Names, spec: &DecoderSpec, backend: &mut dyn Backend, n: usize) -> Vec<f32> {
    logits_with(weights, names, spec, LoadOptions::anywhere(Pack::F32), backend, n)
}

fn logits_with(
    weights: &Weights,
    names: &Names,
    spec: &DecoderSpec,
    options: LoadOptions,
    backend: &mut dyn Backend,
    n: usize,
) -> Vec<f32> {
    let load = load_model(weights, options, QUANT, |w| Decoder::load(w, names, spec));
    let (decoder, reads) = load.unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(reads.keys().any(|name| name.contains("router")), *names == MOE);
    let p = PlanBuilder::new();
    let shape = TextShape {
        max_rows: n,
        max_outputs: n,
        kv_rows: CAPACITY,
        context: CAPACITY,
        sessions: 1,
        kv_dtype: DType::F32,
        images: false,
    };
    decoder.record(&p, &shape);
    let program = PreparedPlan::prepare(p.finish().expect("a plan"), weights, backend);
    let rows: Vec<Row> = (0..n).map(|i| row((i * 7 % VOCAB) as u32, i, 0)).collect();
    program.write(backend, slots::ROWS, bytemuck::cast_slice(&rows));
    program.write(backend, slots::OUTPUTS, &(0..n as u32).collect::<Vec<u32>>());
    let step = Step::new(n, n, n);
    backend.run(program.id, &step, 0..program.plan.nodes.len()).expect("it runs");
    program.output(backend, slots::LOGITS, n * VOCAB)
}

#[test]
fn a_dense_decoder_is_a_mixture_of_one_expert() {
    let weights = weights();
    let bounded = Act::SiLu { clamp: Some(GateClamp { gate: 0.5, product: 0.25 }) };
    for n in [1, 3, 17] {
        let mut wanted: Vec<Vec<f32>> = Vec::new();
        for (device, mut backend) in devices() {
            for (i, act) in [PLAIN, bounded].into_iter().enumerate() {
                let one = logits(&weights, &DENSE, &dense(act), backend.as_mut(), n);
                let other = logits(&weights, &MOE, &mixture(act), backend.as_mut(), n);
                compare(&one, &other, 1e-4).unwrap_or_else(|e| panic!("{device}, {n} rows, {act:?}: {e}"));
                match wanted.get(i) {
                    None => wanted.push(one),
                    // A code on an edge may round the other way.
                    Some(want) => compare(&one, want, 0.05).unwrap_or_else(|e| panic!("{device}, {n} rows: {e}")),
                }
            }
        }
        assert!(compare(&wanted[0], &wanted[1], 0.1).is_err(), "{n} rows: the activation's bounds change nothing");
        assert!(bits(&wanted[0]).iter().all(|v| f32::from_bits(*v).is_finite()), "{n} rows");
    }
}

#[test]
fn each_layer_and_each_norm_is_as_the_description_says() {
    let weights = weights();
    let mut backend = Cpu::plain();
    let whole = logits(&weights, &DENSE, &dense(PLAIN), &mut backend, 5);
    let mut one = dense(PLAIN);
    one.layers.truncate(1);
    assert!(compare(&logits(&weights, &DENSE, &one, &mut backend, 5), &whole, 0.1).is_err(), "one layer is enough");
    let mut tight = dense(PLAIN);
    tight.layers[1].ffn_norm.clamp = Some(NormClamp { input: 0.5, output: 0.5 });
    let found = logits(&weights, &DENSE, &tight, &mut backend, 5);
    assert!(compare(&found, &whole, 0.1).is_err(), "a norm's bounds change nothing");
}
