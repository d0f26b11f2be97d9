// Attention of many queries through workgroup memory (ops/attention.rs): a workgroup takes a block of 16 queries of one
// kv head over chunks of 32 keys, with a running maximum. Its 64 threads take 2 queries × 4 keys each for the scores, in
// slices of 64 columns, and 4 queries × 4 columns for the outputs.
// Grid: x = kv heads · slices of 64 columns, y = blocks of queries. Source: Dao et al. 2022.
#import queries
#import vectors

const QUERIES: u32 = 16u;
const KEYS: u32 = 32u;
const SLICE: u32 = 64u;
const PITCH: u32 = SLICE + 1u; // rows apart, so that neighbouring threads read different banks
const THREADS: u32 = 64u;

#ifdef CACHED
#bind var<storage, read> rows: array<vec4<u32>>; // [rows]: token, pos, seq_base, seq_len
#endif
#bind var<storage, read_write> y: array<f32>; // [rows, heads · d]

var<workgroup> asked: array<f32, QUERIES * PITCH>;
var<workgroup> held: array<f32, KEYS * PITCH>; // a slice of the keys, then of the values
var<workgroup> weights: array<f32, QUERIES * KEYS>;
var<workgroup> limits: array<u32, QUERIES>; // keys of each query in this run
var<workgroup> max_scores: array<f32, QUERIES>;
var<workgroup> totals: array<f32, QUERIES>;
var<workgroup> shrinks: array<f32, QUERIES>;

// Scores of 2 queries with 4 keys from columns `at..` of the chunk that begins at `key`.
fn scores_of(id: u32, block: u32, queries: u32, kv: u32, key: u32, last: u32) -> array<vec4<f32>, 2> {
    var sums: array<vec4<f32>, 2>;
    for (var at = 0u; at < params.d; at += SLICE) {
        let width = min(SLICE, params.d - at);
        workgroupBarrier();
        for (var i = id; i < QUERIES * SLICE; i += THREADS) {
            let column = i % SLICE;
            if column < width {
                let begin = queried_at(min(block + i / SLICE, queries - 1u), kv);
                asked[i / SLICE * PITCH + column] = q[begin + at + column];
            }
        }
        for (var i = id; i < KEYS * SLICE / 2u; i += THREADS) {
            let column = i * 2u % SLICE;
            if column < width {
                let pair = k_pair(key_at(min(key + i * 2u / SLICE, last), kv) + at + column);
                held[i * 2u / SLICE * PITCH + column] = pair.x;
                held[i * 2u / SLICE * PITCH + column + 1u] = pair.y;
            }
        }
        workgroupBarrier();
        let q0 = id / 8u * 2u * PITCH;
        let k0 = id % 8u * PITCH;
        for (var i = 0u; i < width; i++) {
            let four = vec4<f32>(
                held[k0 + i], held[k0 + 8u * PITCH + i], held[k0 + 16u * PITCH + i], held[k0 + 24u * PITCH + i]);
            sums[0] += asked[q0 + i] * four;
            sums[1] += asked[q0 + PITCH + i] * four;
        }
    }
    return sums;
}

// The softmax's next part, one query per thread.
fn weigh(id: u32, chunk: u32) {
    let n = limits[id];
    var max_score = max_scores[id];
    for (var j = 0u; j < KEYS; j++) {
        if chunk + j < n { max_score = max(max_score, weights[id * KEYS + j]); }
    }
    let shrink = exp(max_scores[id] - max_score);
    var total = totals[id] * shrink;
    for (var j = 0u; j < KEYS; j++) {
        let w = select(0.0, exp(weights[id * KEYS + j] - max_score), chunk + j < n);
        weights[id * KEYS + j] = w;
        total += w;
    }
    max_scores[id] = max_score;
    totals[id] = total;
    shrinks[id] = shrink;
}

@compute @workgroup_size(THREADS)
fn main(@builtin(local_invocation_index) id: u32, @builtin(workgroup_id) group: vec3<u32>) {
    let slices = (params.d + SLICE - 1u) / SLICE;
    let kv = group.x / slices;
    let column0 = group.x % slices * SLICE;
    let width = min(SLICE, params.d - column0);
    let queries = n_queries();
    let block = group.y * QUERIES;
    let end = min(block + QUERIES, queries);
    let t0 = id / 16u * 4u; // of the outputs: queries t0.., columns c0, c0 + 16, ...
    let c0 = id % 16u;
    var out: array<vec4<f32>, 4>;
    if id < QUERIES {
        max_scores[id] = MIN_SCORE;
        totals[id] = 0.0;
    }
    var begin = block;
    while begin < end {
        let run = run_from(begin, end);
        if id < QUERIES { limits[id] = keys_in(block + id, begin, run.end); }
        let last = run.first + max(run.keys, 1u) - 1u;
        for (var chunk = 0u; chunk < run.keys; chunk += KEYS) {
            let scores = scores_of(id, block, queries, kv, run.first + chunk, last);
            for (var j = 0u; j < 4u; j++) {
                let nth = id % 8u + 8u * j;
                let scale = params.scale * k_scale(min(run.first + chunk + nth, last), kv);
                for (var t = 0u; t < 2u; t++) {
                    weights[(id / 8u * 2u + t) * KEYS + nth] = component(scores[t], j) * scale;
                }
            }
            workgroupBarrier();
            if id < QUERIES { weigh(id, chunk); }
            for (var i = id; i < KEYS * SLICE / 2u; i += THREADS) {
                let column = i * 2u % SLICE;
                if column < width {
                    let key = min(run.first + chunk + i * 2u / SLICE, last);
                    let pair = v_pair(value_at(key, kv) + column0 + column) * v_scale(key, kv);
                    held[i * 2u / SLICE * PITCH + column] = pair.x;
                    held[i * 2u / SLICE * PITCH + column + 1u] = pair.y;
                }
            }
            workgroupBarrier();
            for (var t = 0u; t < 4u; t++) { out[t] *= shrinks[t0 + t]; }
            for (var j = 0u; j < KEYS; j++) {
                let at = j * PITCH + c0;
                let four = vec4<f32>(held[at], held[at + 16u], held[at + 32u], held[at + 48u]);
                for (var t = 0u; t < 4u; t++) { out[t] += weights[(t0 + t) * KEYS + j] * four; }
            }
        }
        begin = run.end;
        workgroupBarrier();
    }
    for (var t = 0u; t < 4u; t++) {
        if block + t0 + t < end {
            for (var c = 0u; c < 4u; c++) {
                let i = c0 + 16u * c;
                if i < width { y[output_at(block + t0 + t, kv) + column0 + i] = component(out[t], c) / totals[t0 + t]; }
            }
        }
    }
}
