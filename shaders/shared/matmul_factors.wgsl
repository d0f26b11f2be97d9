// The factors of a dense product, four elements at a time (ops/matmul.rs); with ANY in rows of any width.

#ifdef ANY
#bind var<storage, read> x: array<f32>; // [rows · per_row, d_in]
#bind var<storage, read> w: array<u32>; // [d_out, d_in], one, two or four per word; then scales [d_out] of integers

fn weight1(at: u32) -> f32 {
#ifdef INT8
    return f32(extractBits(bitcast<i32>(w[at / 4u]), at % 4u * 8u, 8u));
#else
#ifdef F16
    let pair = unpack2x16float(w[at / 2u]);
    return select(pair.x, pair.y, (at & 1u) == 1u);
#else
    return bitcast<f32>(w[at]);
#endif
#endif
}

// Four neighbouring elements of w, of which the first `left` belong to the row; 0 for the others.
fn weight4(at: u32, left: u32) -> vec4<f32> {
    let all = vec4<f32>(weight1(at), weight1(at + 1u), weight1(at + 2u), weight1(at + 3u));
    return select(vec4<f32>(), all, vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(left));
}

// As `weight4`, of x.
fn x4(at: u32, left: u32) -> vec4<f32> {
    let all = vec4<f32>(x[at], x[at + 1u], x[at + 2u], x[at + 3u]);
    return select(vec4<f32>(), all, vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(left));
}
#else
#bind var<storage, read> x: array<vec4<f32>>; // [rows · per_row, d_in / 4]
#ifdef INT8
#bind var<storage, read> w: array<u32>; // [d_out, d_in / 4], then scales [d_out]
#else
#ifdef F16
#bind var<storage, read> w: array<vec2<u32>>; // [d_out, d_in / 4]
#else
#bind var<storage, read> w: array<vec4<f32>>; // [d_out, d_in / 4]
#endif
#endif

// Four neighbouring elements of w, without their row's scale; all of them belong to the row.
fn weight4(at: u32, left: u32) -> vec4<f32> {
#ifdef INT8
    return vec4<f32>(unpack4xI8(w[at / 4u]));
#else
#ifdef F16
    let pair = w[at / 4u];
    return vec4<f32>(unpack2x16float(pair.x), unpack2x16float(pair.y));
#else
    return w[at / 4u];
#endif
#endif
}

// As `weight4`, of x.
fn x4(at: u32, left: u32) -> vec4<f32> {
    return x[at / 4u];
}
#endif

#ifdef INT8
// The scale of row `out` of w.
fn scale_of(out: u32) -> f32 {
    return bitcast<f32>(w[(params.d_out * params.d_in + 3u) / 4u + out]);
}
#endif
