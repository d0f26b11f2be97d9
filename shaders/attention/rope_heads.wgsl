// Rotates q and k by each row's position, under a norm of each head if there is one, stores k and v in the cache
// (ops/rope_kv_write.rs). Grid: x = heads of q, k and v, y = rows, one workgroup each; a thread takes two neighbouring
// elements at a time, so that f16 pairs are written whole. Source: Su et al. 2021, in both forms.
#import reduce

struct Params {
    heads: u32,
    kv_heads: u32,
    d: u32,
    pairs: u32, // elements of a head that rotate, halved
    eps: f32,
    floor: f32,
    in_bound: f32,
    out_bound: f32,
}
@group(0) @binding(1) var<uniform> params: Params;
#bind var<storage, read> qkv: array<f32>; // [rows, (heads + 2 kv_heads) · d]
#bind var<storage, read> rows: array<vec4<u32>>; // [rows]: token, pos, seq_base, seq_len
#bind var<storage, read> table: array<vec2<f32>>; // [positions, pairs]: cos, sin
#ifdef NORM
#bind var<storage, read> q_weight: array<f32>; // [d]
#bind var<storage, read> k_weight: array<f32>; // [d]
#endif
#bind var<storage, read_write> q: array<f32>; // [rows, heads · d]
#bind var<storage, read_write> k_cache: array<u32>; // [capacity, kv_heads · d] f32, or f16 in pairs
#bind var<storage, read_write> v_cache: array<u32>; // [capacity, kv_heads · d]

// Element j of the head that begins at `x`, under its norm.
fn element(x: u32, j: u32, is_query: bool, rms: f32) -> f32 {
    let v = qkv[x + j];
#ifdef NORM
    var w = k_weight[j];
    if is_query { w = q_weight[j]; }
    return w * bounded(bounded(v, params.in_bound) / rms, params.out_bound);
#else
    return v;
#endif
}

fn rotated(x: u32, j: u32, pos: u32, is_query: bool, rms: f32) -> f32 {
    let v = element(x, j, is_query, rms);
    if j >= 2u * params.pairs { return v; }
#ifdef INTERLEAVED
    let is_second = (j & 1u) == 1u;
    let pair = j / 2u;
    let other = j ^ 1u;
#else
    let is_second = j >= params.pairs;
    let pair = select(j, j - params.pairs, is_second);
    let other = select(j + params.pairs, pair, is_second);
#endif
    let turn = table[pos * params.pairs + pair];
    let partner = element(x, other, is_query, rms);
    return v * turn.x + select(-partner, partner, is_second) * turn.y;
}

// Two elements of a cache as words: one, or two.
fn words_of(v: vec2<f32>) -> vec2<u32> {
#ifdef F16
    return vec2<u32>(pack2x16float(v), 0u);
#else
    return bitcast<vec2<u32>>(v);
#endif
}

fn run(lane: Lane, group: vec3<u32>) {
    let head = group.x;
    let row = rows[group.y];
    let d = params.d;
    let x = (group.y * (params.heads + 2u * params.kv_heads) + head) * d;
    let is_query = head < params.heads;
    let is_value = head >= params.heads + params.kv_heads;
    var rms = 1.0;
#ifdef NORM
    var squares = 0.0;
    for (var j = lane.id; j < d; j += WG) {
        let v = bounded(qkv[x + j], params.in_bound);
        squares += v * v;
    }
    rms = sqrt(at_least(workgroup_sum(lane, squares) / f32(d), params.floor) + params.eps);
#endif
    let cache = (row.y + row.z) * params.kv_heads * d;
    for (var j = 2u * lane.id; j < d; j += 2u * WG) {
        if is_value {
            let at = cache + (head - params.heads - params.kv_heads) * d + j;
            let words = words_of(vec2<f32>(qkv[x + j], qkv[x + j + 1u]));
#ifdef F16
            v_cache[at / 2u] = words.x;
#else
            v_cache[at] = words.x;
            v_cache[at + 1u] = words.y;
#endif
            continue;
        }
        let both = vec2<f32>(rotated(x, j, row.y, is_query, rms), rotated(x, j + 1u, row.y, is_query, rms));
        if is_query {
            let at = (group.y * params.heads + head) * d + j;
            q[at] = both.x;
            q[at + 1u] = both.y;
        } else {
            let at = cache + (head - params.heads) * d + j;
            let words = words_of(both);
#ifdef F16
            k_cache[at / 2u] = words.x;
#else
            k_cache[at] = words.x;
            k_cache[at + 1u] = words.y;
#endif
        }
    }
}
