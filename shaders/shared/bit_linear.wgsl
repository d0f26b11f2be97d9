// Shared by the kernels of ops/bit_linear.rs: parameters, bindings, and the epilogue of a product.
#import step
#import stack
#import vectors
#import bounds

struct Params {
    width: u32,
    slots: u32, // of a row with experts: k, then the shared ones'; else 1
    k: u32,
    experts: u32, // to choose from
    out_width: u32,
    eps: f32,
    rms_floor: f32,
    in_bound: f32,
    out_bound: f32,
    max_code: f32,
    act_bound: f32,
    act_floor: f32,
    pre_norm_eps: f32,
    pre_norm_floor: f32,
    pre_norm_in_bound: f32,
    pre_norm_out_bound: f32,
    sum_bound: f32,
    counted_by: u32,
    rows: u32,
}
@group(0) @binding(1) var<uniform> params: Params;
#bind var<storage, read> x: array<vec4<f32>>; // [rows, width / 4], or [rows, slots, width / 4] with COMBINE
#bind var<storage, read> norms: array<vec4<f32>>; // [matrices, width / 4], with ROUTE what `pre_norm_at` says behind them
#bind var<storage, read> weights: array<vec4<u32>>; // a stack: header, table, words
#ifdef ROUTE
#bind var<storage, read> rows: array<vec4<u32>>; // [rows]: token, pos, seq_base, seq_len
#else
#ifdef PRE_NORM
#bind var<storage, read> pre_norm: array<vec4<f32>>; // [width / 4]
#endif
#ifdef SWIGLU
#bind var<storage, read> expert_ids: array<u32>; // [rows, k]
#endif
#endif
#ifdef COMBINE
#bind var<storage, read> expert_ids: array<u32>; // [rows, k]
#bind var<storage, read> expert_weights: array<f32>; // [rows, k]
#endif
#ifdef RESIDUAL
#bind var<storage, read> residual: array<f32>; // [rows, out_width]
#endif
#bind var<storage, read_write> y: array<f32>; // [rows, out_width], or [rows, slots, out_width] with SWIGLU
#ifdef ROUTE
#bind var<storage, read_write> expert_ids: array<u32>; // [rows, k]
#bind var<storage, read_write> expert_weights: array<f32>; // [rows, k]
#bind var<storage, read_write> log: array<u32>; // [capacity, k]
#endif

#ifdef PLAIN
#else
// The expert of a slot of a row. With ROUTE `chosen` finds it among the logits of the workgroup.
fn expert_of(row: u32, slot: u32) -> u32 {
    var expert = params.experts + slot - params.k;
#ifdef ROUTE
    if slot < params.k { expert = chosen(slot); }
#else
    if slot < params.k { expert = expert_ids[row * params.k + slot]; }
#endif
    return expert;
}
#endif

#ifdef PRE_NORM
// Elements 4i.. of the weight of the norm in front.
fn pre_norm_weight(i: u32) -> vec4<f32> {
#ifdef ROUTE
    return norms[pre_norm_at() + i];
#else
    return pre_norm[i];
#endif
}
#endif

#ifdef ACT_CLAMP
// Constants, not parameters: with those, drivers that compute on the CPU take a third more time for the whole product.
override GATE_BOUND: f32 = 1.0;
override PRODUCT_BOUND: f32 = 1.0;
#endif

// Adds a term to an output, or multiplies it by one.
fn accumulate(before: vec4<f32>, v: vec4<f32>, row: u32, t: u32) -> vec4<f32> {
#ifdef SWIGLU
#ifdef ACT_CLAMP
    if t > 0u { return bounded4(before * v, PRODUCT_BOUND); }
    let g = bounded4(v, GATE_BOUND);
#else
    if t > 0u { return before * v; }
    let g = v;
#endif
#ifdef RELU2
    return relu_squared(g);
#else
    return silu(g);
#endif
#else
#ifdef COMBINE
    var factor = 1.0;
    if t < params.k { factor = expert_weights[row * params.k + t]; }
    return before + factor * v;
#else
    return v;
#endif
#endif
}

// Writes four outputs, `in_part` the first one's number in its matrix of `rows` outputs.
fn write4(v: vec4<f32>, in_part: u32, rows: u32, out: u32) {
#ifdef COMBINE
    let last = bounded4(v, params.sum_bound);
#else
    let last = v;
#endif
    for (var i = 0u; i < 4u; i++) {
        if in_part + i < rows {
#ifdef RESIDUAL
            y[out + i] = component(last, i) + residual[out + i];
#else
            y[out + i] = component(last, i);
#endif
        }
    }
}
