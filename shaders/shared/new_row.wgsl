// The heads that a new row brings, eight elements at a time (ops/rope_attention.rs): under their norm if there is one, and
// turned by the row's position. Source: Su et al. 2021, in both forms.
#import bounds

// Eight elements of the head that begins at vec4 `x0` of qkv, under the norm with weights from `norm` on.
fn plain_eight(x0: u32, e: u32, norm: u32, rms: f32) -> Eight {
    let a = qkv[x0 + 2u * e];
    let b = qkv[x0 + 2u * e + 1u];
#ifdef NORM
    let w = norm + 2u * e;
    return Eight(qk_weights[w] * bounded4(bounded4(a, params.head_in_bound) / rms, params.head_out_bound),
        qk_weights[w + 1u] * bounded4(bounded4(b, params.head_in_bound) / rms, params.head_out_bound));
#else
    return Eight(a, b);
#endif
}

#ifdef INTERLEAVED
// Two pairs by two rows of the table.
fn turned_pairs(v: vec4<f32>, turn: vec4<f32>) -> vec4<f32> {
    return v * turn.xxzz + vec4<f32>(-v.y, v.x, -v.w, v.z) * turn.yyww;
}
#endif

// The same, turned by the row's position.
fn turned_eight(x0: u32, e: u32, pos: u32, norm: u32, rms: f32) -> Eight {
    let own = plain_eight(x0, e, norm, rms);
    if 4u * e >= params.pairs { return own; }
#ifdef INTERLEAVED
    let at = (pos * params.pairs + 4u * e) / 2u;
    return Eight(turned_pairs(own.a, table[at]), turned_pairs(own.b, table[at + 1u]));
#else
    let eights = params.pairs / 8u;
    let is_second = e >= eights;
    let first = select(e, e - eights, is_second);
    let other = plain_eight(x0, select(e + eights, first, is_second), norm, rms);
    let at = (pos * params.pairs + 8u * first) / 2u;
    let a = table[at];
    let b = table[at + 1u];
    let c = table[at + 2u];
    let d = table[at + 3u];
    let sign = select(-1.0, 1.0, is_second);
    return Eight(own.a * vec4<f32>(a.xz, b.xz) + sign * other.a * vec4<f32>(a.yw, b.yw),
        own.b * vec4<f32>(c.xz, d.xz) + sign * other.b * vec4<f32>(c.yw, d.yw));
#endif
}

#ifdef NORM
// What eight elements of a head add to its sum of squares.
fn squares_of(x0: u32, e: u32) -> f32 {
    let a = bounded4(qkv[x0 + 2u * e], params.head_in_bound);
    let b = bounded4(qkv[x0 + 2u * e + 1u], params.head_in_bound);
    return dot(a, a) + dot(b, b);
}

// Root mean square of a head.
fn head_rms(squares: f32) -> f32 {
    return sqrt(at_least(squares / f32(params.d), params.head_floor) + params.head_eps);
}
#endif

// Where the heads of kv head `kv` begin in qkv: its first query, its key, its value.
fn heads_at(kv: u32) -> vec3<u32> {
    let group = params.heads / params.kv_heads;
    return vec3<u32>(kv * group, params.heads + kv, params.heads + params.kv_heads + kv) * (params.d / 4u);
}

// The place of the row's kv head in the cache, in eights.
fn new_place(kv: u32) -> u32 {
    return ((rows[0].y + rows[0].z) * params.kv_heads + kv) * (params.d / 8u);
}

#ifdef F16
fn halves(v: Eight) -> vec4<u32> {
    return vec4<u32>(pack2x16float(v.a.xy), pack2x16float(v.a.zw), pack2x16float(v.b.xy), pack2x16float(v.b.zw));
}

fn store_key(i: u32, key: Eight) {
    k[i] = halves(key);
}

fn store_value(i: u32, value: Eight) {
    v[i] = halves(value);
}
#else
fn store_key(i: u32, key: Eight) {
    k[2u * i] = key.a;
    k[2u * i + 1u] = key.b;
}

fn store_value(i: u32, value: Eight) {
    v[2u * i] = value.a;
    v[2u * i + 1u] = value.b;
}
#endif
