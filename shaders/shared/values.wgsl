// Reading the values of an attention, behind its keys.
#import attention

#bind var<storage, read> v: array<u32>; // [keys, v_width], as k

// Where a key's kv head begins in v.
fn value_at(key: u32, kv_head: u32) -> u32 {
    return key * params.v_width + params.v_at + kv_head * params.d;
}

// Element i of v.
fn v_one(i: u32) -> f32 {
#ifdef F16
    let pair = unpack2x16float(v[i / 2u]);
    return select(pair.x, pair.y, (i & 1u) == 1u);
#else
    return bitcast<f32>(v[i]);
#endif
}

// Elements i and i + 1 of v; i is even, but with ODD.
fn v_pair(i: u32) -> vec2<f32> {
#ifdef ODD
    return vec2<f32>(v_one(i), v_one(i + 1u));
#else
#ifdef F16
    return unpack2x16float(v[i / 2u]);
#else
    return vec2<f32>(bitcast<f32>(v[i]), bitcast<f32>(v[i + 1u]));
#endif
#endif
}
