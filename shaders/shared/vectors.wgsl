// Components of vectors at computed indices. FXC reads `v[i]` as a dot product with a unit vector, so that a NaN or an
// infinity in another component gets into the result, such as what workgroup memory held before.

fn component(v: vec4<f32>, i: u32) -> f32 {
    return select(select(v.x, v.y, i == 1u), select(v.z, v.w, i == 3u), i > 1u);
}
