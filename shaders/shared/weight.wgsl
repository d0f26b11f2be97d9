// A dense weight, four elements at a time (ops/matmul.rs).

#ifdef INT8
#bind var<storage, read> w: array<u32>; // [d_out, d_in / 4], then scales [d_out]
#else
#ifdef F16
#bind var<storage, read> w: array<vec2<u32>>; // [d_out, d_in / 4]
#else
#bind var<storage, read> w: array<vec4<f32>>; // [d_out, d_in / 4]
#endif
#endif

// Four neighbouring elements of w, without their row's scale.
fn weight4(at: u32) -> vec4<f32> {
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

#ifdef INT8
// The scale of row `out` of w.
fn scale_of(out: u32) -> f32 {
    return bitcast<f32>(w[params.d_out * params.d_in / 4u + out]);
}
#endif
