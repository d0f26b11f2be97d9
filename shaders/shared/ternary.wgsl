// Parameters of the ternary products (ops/ternary_matmul.rs), their bindings behind the codes, and reading a stack of matrices
// (src/quant).
#import step
#import stack
#import vectors
#ifdef GATED
#import gated
#endif

struct Params {
    counted_by: u32,
    rows: u32,
    sets: u32,
    set_words: u32,
    parts: u32, // matrices of the stack, or of one expert
    slots: u32, // of a row with experts, else 1
    k: u32,
    n_experts: u32,
    matrices: u32, // of the whole, of which the stack may be a piece, or of one expert
    first_matrix: u32,
    first_out: u32,
    out_width: u32,
    gate_bound: f32, // of the activation; see GATED
    product_bound: f32,
    relu2: u32,
}
@group(0) @binding(1) var<uniform> params: Params;
#bind var<storage, read> act_scale_and_sum: array<vec2<f32>>; // [rows, sets]: 1/k, sum of codes
#bind var<storage, read> weights: array<vec4<u32>>; // a stack: header, table, words
#ifdef EXPERTS
#bind var<storage, read> expert_ids: array<u32>; // [rows, k]
#endif
#ifdef GROUPS
#bind var<storage, read> groups: array<u32>; // [blocks, 9]: expert, and 8 places (row, slot)
#endif
#ifdef RESIDUAL
#bind var<storage, read> residual: array<f32>; // [rows, out_width]
#endif
#bind var<storage, read_write> y: array<f32>; // [rows, slots, out_width]

const NO_ROW: u32 = 0xffffffffu; // in groups: no expert, no place

// Four products, from sums over stored codes and the activations' scale and sum of set `which`.
fn products4(stored: vec4<i32>, part: Part, which: u32) -> vec4<f32> {
    let m = act_scale_and_sum[which];
    return vec4<f32>(exact_sums(stored, i32(m.y), part.bits)) * (part.scale * m.x);
}

// Writes four outputs, `in_part` the first one's number in its matrix of `rows` rows, and `out` its index in y.
fn store4(values: vec4<f32>, rows: u32, in_part: u32, out: u32) {
    for (var i = 0u; i < 4u; i++) {
        if in_part + i < rows {
            var v = component(values, i);
#ifdef RESIDUAL
            v += residual[out + i];
#endif
            y[out + i] = v;
        }
    }
}
