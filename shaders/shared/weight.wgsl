// A dense weight, four elements at a time (ops/matmul.rs).

#ifdef F16
#bind var<storage, read> w: array<vec2<u32>>; // [d_out, d_in / 4]
#else
#bind var<storage, read> w: array<vec4<f32>>; // [d_out, d_in / 4]
#endif

// Four neighbouring elements of w.
fn weight4(at: u32) -> vec4<f32> {
#ifdef F16
    let pair = w[at / 4u];
    return vec4<f32>(unpack2x16float(pair.x), unpack2x16float(pair.y));
#else
    return w[at / 4u];
#endif
}
