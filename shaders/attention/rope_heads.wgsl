// Rotates q and k by each row's position, under a norm of each head if there is one, stores k and v in the cache
// (ops/rope_kv_write.rs). Grid: x = heads of q, k and v, y = rows, one workgroup each; a thread takes two neighbouring
// elements at a time, so that f16 pairs are written whole, or four, which are a word of 8-bit integers. Source: Su et al. 2021, in both forms.
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
    scales_at: u32, // word of the first scale of integers
}
@group(0) @binding(1) var<uniform> params: Params;
#bind var<storage, read> qkv: array<f32>; // [rows, (heads + 2 kv_heads) · d]
#bind var<storage, read> rows: array<vec4<u32>>; // [rows]: token, pos, seq_base, seq_len
#bind var<storage, read> table: array<vec2<f32>>; // [positions, pairs]: cos, sin
#ifdef NORM
#bind var<storage, read> weights: array<f32>; // [2, d]: of q, of k
#endif
#bind var<storage, read_write> q: array<f32>; // [rows, heads · d]
#bind var<storage, read_write> k_cache: array<u32>; // [capacity, kv_heads · d] f32, f16 in pairs, or integers in fours and their scales
#bind var<storage, read_write> v_cache: array<u32>; // [capacity, kv_heads · d]

// Element j of the head that begins at `x`, under its norm.
fn element(x: u32, j: u32, is_query: bool, rms: f32) -> f32 {
    let v = qkv[x + j];
#ifdef NORM
    let w = weights[select(params.d, 0u, is_query) + j];
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

// A head of qkv, and where it goes.
struct Source {
    x: u32, // its first element in qkv
    pos: u32,
    is_query: bool,
    is_value: bool,
    rms: f32,
    place: u32, // among the heads of q, or of the cache
}

// What element j becomes.
fn result(head: Source, j: u32) -> f32 {
    var v = qkv[head.x + j];
    if !head.is_value { v = rotated(head.x, j, head.pos, head.is_query, head.rms); }
    return v;
}

fn put(is_value: bool, at: u32, word: u32) {
    if is_value { v_cache[at] = word; } else { k_cache[at] = word; }
}

#ifdef INT8
const SMALLEST: f32 = 1e-30; // the reciprocal of a number below it may be infinite

fn store(lane: Lane, head: Source) {
    let d = params.d;
    var size = 0;
    for (var j = lane.id; j < d; j += WG) { size = max(size, magnitude(result(head, j))); }
    let absmax = of_order(workgroup_max(lane, size));
    let factor = select(0.0, 127.0 / absmax, absmax > SMALLEST);
    if !head.is_query && lane.id == 0u {
        put(head.is_value, params.scales_at + head.place, bitcast<u32>(absmax * (1.0 / 127.0)));
    }
    for (var j = 4u * lane.id; j < d; j += 4u * WG) {
        let four = vec4<f32>(result(head, j), result(head, j + 1u), result(head, j + 2u), result(head, j + 3u));
        let at = head.place * d + j;
        if head.is_query {
            q[at] = four.x;
            q[at + 1u] = four.y;
            q[at + 2u] = four.z;
            q[at + 3u] = four.w;
        } else {
            put(head.is_value, at / 4u, word_of(codes_of(four * factor, 127.0)));
        }
    }
}
#else
fn store(lane: Lane, head: Source) {
    let d = params.d;
    for (var j = 2u * lane.id; j < d; j += 2u * WG) {
        let both = vec2<f32>(result(head, j), result(head, j + 1u));
        let at = head.place * d + j;
        if head.is_query {
            q[at] = both.x;
            q[at + 1u] = both.y;
            continue;
        }
#ifdef F16
        put(head.is_value, at / 2u, pack2x16float(both));
#else
        put(head.is_value, at, bitcast<u32>(both.x));
        put(head.is_value, at + 1u, bitcast<u32>(both.y));
#endif
    }
}
#endif

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
    var place = (row.y + row.z) * params.kv_heads + head - select(params.heads, params.heads + params.kv_heads, is_value);
    if is_query { place = group.y * params.heads + head; }
    store(lane, Source(x, row.y, is_query, is_value, rms, place));
}
