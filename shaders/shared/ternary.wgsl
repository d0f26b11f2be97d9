// Parameters of the ternary products (ops/ternary_matmul.rs), their bindings behind the codes, reading a stack of matrices
// (src/quant), and the integer dot products.
#import step
#import stack
#import vectors

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

// Σ a_i · b_i of four signed bytes each.
fn dot4(a: u32, b: u32) -> i32 {
#ifdef DOT4
    return dot4I8Packed(a, b);
#else
    let x = vec4<i32>(bitcast<i32>(a << 24u), bitcast<i32>(a << 16u), bitcast<i32>(a << 8u), bitcast<i32>(a))
        >> vec4<u32>(24u);
    let y = vec4<i32>(bitcast<i32>(b << 24u), bitcast<i32>(b << 16u), bitcast<i32>(b << 8u), bitcast<i32>(b))
        >> vec4<u32>(24u);
    let p = x * y;
    return p.x + p.y + p.z + p.w;
#endif
}

// Columns 4k.. of four rows against one word of activations; stored codes are code + 1 (2 bits) or 0 and 1 (1 bit).
fn dot_rows(words: vec4<u32>, shift: u32, mask: u32, act: u32) -> vec4<i32> {
    let w = (words >> vec4<u32>(shift)) & vec4<u32>(mask);
    return vec4<i32>(dot4(w.x, act), dot4(w.y, act), dot4(w.z, act), dot4(w.w, act));
}

// The bits of the first code of each byte. Computed, not chosen: where `select` gives one of two masks, FXC keeps the bits
// that one of them has, and the 2-bit codes of the last byte lose one.
fn code_mask(bits: u32) -> u32 {
    return 0x01010101u * ((1u << bits) - 1u);
}

// Writes four outputs, `in_part` the first one's number in its matrix and `out` its index in y, from sums over stored
// codes and the activations' scale and sum of set `which`.
fn store4(stored: vec4<i32>, part: Part, which: u32, in_part: u32, out: u32) {
    let m = act_scale_and_sum[which];
    let exact = vec4<f32>(exact_sums(stored, i32(m.y), part.bits)) * (part.scale * m.x);
    for (var i = 0u; i < 4u; i++) {
        if in_part + i < part.rows {
            var v = component(exact, i);
#ifdef RESIDUAL
            v += residual[out + i];
#endif
            y[out + i] = v;
        }
    }
}
