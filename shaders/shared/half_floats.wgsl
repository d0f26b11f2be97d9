// 16-bit floats as integers, on any adapter.

// The float of a half, which is finite. Subnormal ones are normal floats.
fn float_of(half: u32) -> f32 {
    let normal = bitcast<f32>(((half & 0x7fffu) << 13u) + 0x38000000u);
    let size = select(normal, f32(half & 0x3ffu) * 5.9604645e-8, (half & 0x7c00u) == 0u);
    return select(size, -size, (half & 0x8000u) != 0u);
}
