// softmax(q · kᵀ · scale) · v for one query row and head a workgroup (ops/attention.rs): keys in chunks of 64, one a
// thread, with a running maximum. Grid: x = heads, y = rows. Source: Milakov & Gimelshein 2018.
#import reduce

const MAX_D: u32 = 256u;
const MINE: u32 = MAX_D / WG; // outputs of a thread
const LEAST: f32 = -1e30; // finite, so that a difference of two is no NaN

struct Params {
    heads: u32,
    group: u32, // query heads for a kv head
    d: u32,
    n_keys: u32,
    q_at: u32,
    q_width: u32,
    k_at: u32,
    k_width: u32,
    v_at: u32,
    v_width: u32,
    scale: f32,
}
@group(0) @binding(1) var<uniform> params: Params;
#bind var<storage, read> q: array<f32>; // [rows, q_width]
#bind var<storage, read> k: array<u32>; // [keys, k_width] f32, or f16 in pairs
#bind var<storage, read> v: array<u32>; // [keys, v_width]
#ifdef CACHED
#bind var<storage, read> rows: array<vec4<u32>>; // [rows]: token, pos, seq_base, seq_len
#endif
#bind var<storage, read_write> y: array<f32>; // [rows, heads · d]

var<workgroup> query: array<f32, MAX_D>;
var<workgroup> weights: array<f32, WG>;

// Elements i and i + 1 of k; i is even.
fn k_pair(i: u32) -> vec2<f32> {
#ifdef F16
    return unpack2x16float(k[i / 2u]);
#else
    return vec2<f32>(bitcast<f32>(k[i]), bitcast<f32>(k[i + 1u]));
#endif
}

fn v_at(i: u32) -> f32 {
#ifdef F16
    let pair = unpack2x16float(v[i / 2u]);
    return select(pair.x, pair.y, (i & 1u) == 1u);
#else
    return bitcast<f32>(v[i]);
#endif
}

@compute @workgroup_size(64)
fn main(lane: Lane, @builtin(workgroup_id) group: vec3<u32>) {
    let head = group.x;
    let row = group.y;
    let d = params.d;
    let kv = head / params.group * d;
    var first = 0u;
    var n = params.n_keys;
#ifdef CACHED
    first = rows[row].z;
    n = rows[row].w;
#endif
    for (var i = lane.id; i < d; i += WG) {
        query[i] = q[row * params.q_width + params.q_at + head * d + i];
    }
    workgroupBarrier();

    var out = array<f32, MINE>();
    var top = LEAST;
    var total = 0.0;
    for (var chunk = 0u; chunk < n; chunk += WG) {
        let key = chunk + lane.id;
        var score = LEAST;
        if key < n {
            let base = (first + key) * params.k_width + params.k_at + kv;
            var sum = 0.0;
            for (var i = 0u; i < d; i += 2u) {
                sum += dot(vec2<f32>(query[i], query[i + 1u]), k_pair(base + i));
            }
            score = sum * params.scale;
        }
        let new_top = max(top, workgroup_max(lane, score));
        let weight = select(0.0, exp(score - new_top), key < n);
        let shrink = exp(top - new_top);
        top = new_top;
        weights[lane.id] = weight;
        // The sum's barriers also make the weights visible.
        total = total * shrink + workgroup_sum(lane, weight);
        let here = min(WG, n - chunk);
        for (var m = 0u; m < MINE; m++) {
            let i = m * WG + lane.id;
            if i < d {
                var sum = out[m] * shrink;
                for (var j = 0u; j < here; j++) {
                    sum += weights[j] * v_at((first + chunk + j) * params.v_width + params.v_at + kv + i);
                }
                out[m] = sum;
            }
        }
    }
    for (var m = 0u; m < MINE; m++) {
        let i = m * WG + lane.id;
        if i < d { y[(row * params.heads + head) * d + i] = out[m] / total; }
    }
}
