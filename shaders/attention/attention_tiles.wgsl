// Attention of many queries through workgroup memory (ops/attention.rs): a workgroup takes a block of 16 queries of one
// kv head over chunks of 32 keys, with a running maximum. Its 64 threads take 2 queries × 4 keys each for the scores, in
// slices of 64 columns, a quarter of the keys of a query for its weights, and 4 queries × 4 columns for the outputs.
// Grid: x = kv heads · slices of 64 columns, y = blocks of queries. Source: Dao et al. 2022.
#import queries
#import vectors

const QUERIES: u32 = 16u;
const KEYS: u32 = 32u;
const SLICE: u32 = 64u;
const FOURS: u32 = SLICE / 4u;
const PITCH: u32 = FOURS + 1u; // vec4s from row to row, so that neighbouring threads read different banks
const THREADS: u32 = 64u;
const SHARES: u32 = THREADS / QUERIES; // threads of a query
const MINE: u32 = KEYS / SHARES; // keys of a thread

#ifdef CACHED
#bind var<storage, read> rows: array<vec4<u32>>; // [rows]: token, pos, seq_base, seq_len
#endif
#bind var<storage, read_write> y: array<f32>; // [rows, heads · d]

var<workgroup> asked: array<vec4<f32>, QUERIES * PITCH>;
var<workgroup> held: array<vec4<f32>, KEYS * PITCH>; // a slice of the keys, then of the values
var<workgroup> weights: array<array<f32, 4>, KEYS * QUERIES / 4u>; // of a key: queries in fours
var<workgroup> limits: array<u32, QUERIES>; // keys of each query in this run
var<workgroup> shrinks: array<f32, QUERIES>;
var<workgroup> partial: array<f32, THREADS>; // of query id % QUERIES

var<private> max_score: f32; // of query id % QUERIES
var<private> total: f32; // of this thread's keys

// Loads have loops whose ends are constants, so that a thread waits for all of its loads together.

// The elements that belong to a slice of `width` columns, of four from `column` on; 0 for the others.
fn inside(four: vec4<f32>, column: u32, width: u32) -> vec4<f32> {
    return select(vec4<f32>(), four, vec4<u32>(column) + vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(width));
}

fn load_queries(id: u32, block: u32, queries: u32, kv: u32, at: u32, width: u32) {
    for (var nth = 0u; nth < QUERIES * FOURS / THREADS; nth++) {
        let i = id + nth * THREADS;
        let column = i % FOURS * 4u;
        let first = queried_at(min(block + i / FOURS, queries - 1u), kv) + at + column;
        asked[i / FOURS * PITCH + i % FOURS] = inside(vec4<f32>(q[first], q[first + 1u], q[first + 2u], q[first + 3u]), column, width);
    }
}

// Scores of 2 queries with 4 keys from columns `at..` of the chunk that begins at `key`. Queries of one slice stay from the
// first chunk on.
fn scores_of(id: u32, block: u32, queries: u32, kv: u32, key: u32, last: u32, is_first: bool) -> array<vec4<f32>, 2> {
    var sums: array<vec4<f32>, 2>;
    for (var at = 0u; at < params.d; at += SLICE) {
        let width = min(SLICE, params.d - at);
        workgroupBarrier();
        if is_first || params.d > SLICE { load_queries(id, block, queries, kv, at, width); }
        for (var nth = 0u; nth < KEYS * FOURS / THREADS; nth++) {
            let i = id + nth * THREADS;
            let column = i % FOURS * 4u;
            let first = key_at(min(key + i / FOURS, last), kv) + at + column;
            held[i / FOURS * PITCH + i % FOURS] = inside(vec4<f32>(k_pair(first), k_pair(first + 2u)), column, width);
        }
        workgroupBarrier();
        let q0 = id / 8u * 2u * PITCH;
        let k0 = id % 8u * PITCH;
        for (var i = 0u; i < FOURS; i++) {
            let a = asked[q0 + i];
            let b = asked[q0 + PITCH + i];
            let v = held[k0 + i];
            let w = held[k0 + 8u * PITCH + i];
            let x = held[k0 + 16u * PITCH + i];
            let z = held[k0 + 24u * PITCH + i];
            sums[0] += vec4<f32>(dot(a, v), dot(a, w), dot(a, x), dot(a, z));
            sums[1] += vec4<f32>(dot(b, v), dot(b, w), dot(b, x), dot(b, z));
        }
    }
    return sums;
}

// The softmax's next part, of a query's keys that are this thread's.
fn weigh(id: u32, chunk: u32) {
    let query = id % QUERIES;
    let first = id / QUERIES * MINE;
    let n = limits[query];
    var mine = max_score;
    for (var j = first; j < first + MINE; j++) {
        if chunk + j < n { mine = max(mine, weights[j * (QUERIES / 4u) + query / 4u][query % 4u]); }
    }
    partial[id] = mine;
    workgroupBarrier();
    var new_max = partial[query];
    for (var s = 1u; s < SHARES; s++) { new_max = max(new_max, partial[s * QUERIES + query]); }
    let shrink = exp(max_score - new_max);
    max_score = new_max;
    total *= shrink;
    for (var j = first; j < first + MINE; j++) {
        let at = j * (QUERIES / 4u) + query / 4u;
        let w = select(0.0, exp(weights[at][query % 4u] - new_max), chunk + j < n);
        weights[at][query % 4u] = w;
        total += w;
    }
    if id < QUERIES { shrinks[id] = shrink; }
}

fn load_values(id: u32, kv: u32, chunk: u32, last: u32, at: u32, width: u32) {
    for (var nth = 0u; nth < KEYS * FOURS / THREADS; nth++) {
        let i = id + nth * THREADS;
        let column = i % FOURS * 4u;
        let key = min(chunk + i / FOURS, last);
        let first = value_at(key, kv) + at + column;
        let four = vec4<f32>(v_pair(first), v_pair(first + 2u)) * v_scale(key, kv);
        held[i / FOURS * PITCH + i % FOURS] = inside(four, column, width);
    }
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
    let t0 = id / FOURS * 4u; // of the outputs: queries t0.., the four columns c0
    let c0 = id % FOURS;
    var out: array<vec4<f32>, 4>;
    max_score = MIN_SCORE;
    total = 0.0;
    var begin = block;
    while begin < end {
        let run = run_from(begin, end);
        if id < QUERIES { limits[id] = keys_in(block + id, begin, run.end); }
        let last = run.first + max(run.keys, 1u) - 1u;
        for (var chunk = 0u; chunk < run.keys; chunk += KEYS) {
            let scores = scores_of(id, block, queries, kv, run.first + chunk, last, chunk == 0u && begin == block);
            for (var j = 0u; j < 4u; j++) {
                let nth = id % 8u + 8u * j;
                let scale = params.scale * k_scale(min(run.first + chunk + nth, last), kv);
                for (var t = 0u; t < 2u; t++) {
                    let query = id / 8u * 2u + t;
                    weights[nth * (QUERIES / 4u) + query / 4u][query % 4u] = component(scores[t], j) * scale;
                }
            }
            workgroupBarrier();
            weigh(id, chunk);
            load_values(id, kv, run.first + chunk, last, column0, width);
            workgroupBarrier();
            for (var t = 0u; t < 4u; t++) { out[t] *= shrinks[t0 + t]; }
            for (var j = 0u; j < KEYS; j++) {
                let four = held[j * PITCH + c0];
                let at = j * (QUERIES / 4u) + t0 / 4u;
                for (var t = 0u; t < 4u; t++) { out[t] += weights[at][t] * four; }
            }
        }
        begin = run.end;
        workgroupBarrier();
    }
    partial[id] = total;
    workgroupBarrier();
    for (var t = 0u; t < 4u; t++) {
        if block + t0 + t < end {
            var sum = 0.0;
            for (var share = 0u; share < SHARES; share++) { sum += partial[share * QUERIES + t0 + t]; }
            for (var c = 0u; c < 4u; c++) {
                let i = 4u * c0 + c;
                if i < width { y[output_at(block + t0 + t, kv) + column0 + i] = component(out[t], c) / sum; }
            }
        }
    }
}
