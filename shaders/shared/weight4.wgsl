// Four neighbouring elements of the weight bound as `w`, stored as f32 or as f16.

fn weight4(at: u32) -> vec4<f32> {
#ifdef F16
    let pair = w[at / 4u];
    return vec4<f32>(unpack2x16float(pair.x), unpack2x16float(pair.y));
#else
    return w[at / 4u];
#endif
}
