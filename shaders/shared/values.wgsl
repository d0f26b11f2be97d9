// Reading the values of an attention, behind its keys.
#import attention

#bind var<storage, read> v: array<u32>; // [keys, v_width], as k

// Where a key's kv head begins in v.
fn value_at(key: u32, kv_head: u32) -> u32 {
    return key * params.v_width + params.v_at + kv_head * params.d;
}

// What values of a key's kv head are multiplied by.
fn v_scale(key: u32, kv_head: u32) -> f32 {
#ifdef INT8
    return bitcast<f32>(v[params.scales_at + key * params.kv_heads + kv_head]);
#else
    return 1.0;
#endif
}

// Element i of v, not yet scaled.
fn v_one(i: u32) -> f32 {
#ifdef INT8
    let pair = two_integers(v[i / 4u], i);
    return select(pair.x, pair.y, (i & 1u) == 1u);
#else
#ifdef F16
    let pair = unpack2x16float(v[i / 2u]);
    return select(pair.x, pair.y, (i & 1u) == 1u);
#else
    return bitcast<f32>(v[i]);
#endif
#endif
}

// Elements i and i + 1 of v, not yet scaled; i is even, but with ODD.
fn v_pair(i: u32) -> vec2<f32> {
#ifdef ODD
    return vec2<f32>(v_one(i), v_one(i + 1u));
#else
#ifdef INT8
    return two_integers(v[i / 4u], i);
#else
#ifdef F16
    return unpack2x16float(v[i / 2u]);
#else
    return vec2<f32>(bitcast<f32>(v[i]), bitcast<f32>(v[i + 1u]));
#endif
#endif
#endif
}
