// softmax(q · kᵀ · scale) · v over the KV cache for few rows (ops/attention.rs): a workgroup takes one kv head of a row
// with all query heads that read it, so that keys and values are loaded once. Grid: x = kv heads, y = rows, z = chunks of
// a row's keys.
// LANES lanes share a key, 8 elements each; KEYS keys are read at a time, TILE between two updates of the running
// maximum. With KEYS_ACROSS_THREADS neighbouring threads take different keys, not neighbouring parts of one. With ROPE the row
// is new: its heads are turned here, and the workgroup of the chunk with the last key writes its key and value first.
// Source: Milakov & Gimelshein 2018; Dao et al. 2023 (Flash-Decoding).

#import kv_chunks
#import vectors
#ifdef ROPE
#import new_row
#endif

override LANES: u32 = 8u; // d / 8
override KEYS: u32 = 8u; // THREADS / LANES
override GROUP: u32 = 2u; // query heads of a kv head, at most 4: one component of a vec4 each
override TILE: u32 = 64u; // 8 · KEYS, at most 256
const THREADS: u32 = 64u;
const PER: u32 = 8u; // keys of a tile that a thread reads
const FEW: u32 = 8u;

var<workgroup> shares: array<vec4<f32>, 512>; // TILE · LANES, later THREADS · GROUP · 2
var<workgroup> scores: array<vec4<f32>, TILE>;
var<workgroup> partial: array<vec4<f32>, THREADS>;
var<workgroup> few: array<vec4<f32>, FEW>;

// A head's score of a key, as far as these eight elements of both go: 0 for heads beyond GROUP. All four heads are taken at
// once, since FXC writes no component at a computed place.
fn score(query: Eight, key: Eight) -> f32 {
    return dot(query.a, key.a) + dot(query.b, key.b);
}

fn scaled(v: Eight, by: f32) -> Eight {
    return Eight(v.a * by, v.b * by);
}

fn max_all(id: u32, mine: vec4<f32>) -> vec4<f32> {
    partial[id] = mine;
    workgroupBarrier();
    if id < FEW {
        var max_score = partial[id];
        for (var i = id + FEW; i < THREADS; i += FEW) { max_score = max(max_score, partial[i]); }
        few[id] = max_score;
    }
    workgroupBarrier();
    if id == 0u {
        var max_score = few[0];
        for (var i = 1u; i < FEW; i++) { max_score = max(max_score, few[i]); }
        few[0] = max_score;
    }
    workgroupBarrier();
    return few[0];
}

// Scores of a tile's keys, the first of which is `first`, become weights of a kv head's values below the new maximum, which
// is returned.
fn weigh(id: u32, first: u32, kv: u32, here: u32, max_score: vec4<f32>, total: ptr<function, vec4<f32>>) -> vec4<f32> {
    var mine = vec4<f32>(MIN_SCORE);
    for (var key = id; key < TILE; key += THREADS) {
        var score = vec4<f32>(MIN_SCORE);
        if key < here {
            score = vec4<f32>();
            for (var lane = 0u; lane < LANES; lane++) { score += shares[key * LANES + lane]; }
            score *= params.scale * k_scale(first + key, kv);
        }
        scores[key] = score;
        mine = max(mine, score);
    }
    let new_max = max(max_score, max_all(id, mine));
    *total *= exp(max_score - new_max);
    for (var key = id; key < min(here, TILE); key += THREADS) {
        let weight = exp(scores[key] - new_max);
        scores[key] = weight * v_scale(first + key, kv);
        *total += weight;
    }
    workgroupBarrier();
    return new_max;
}

// Adds up the keys' shares of the outputs, and writes them.
fn write_all(id: u32, max_score: vec4<f32>, total: vec4<f32>, group: vec3<u32>, chunks: u32) {
    partial[id] = total;
    workgroupBarrier();
    var sum = vec4<f32>();
    for (var i = 0u; i < THREADS; i++) { sum += partial[i]; }
    let fours = LANES * 2u; // of a head
    for (var o = id; o < GROUP * fours; o += THREADS) {
        var value = vec4<f32>();
        for (var key = 0u; key < KEYS; key++) { value += shares[key * GROUP * fours + o]; }
        let h = o / fours;
        store_output(group.y, group.x * GROUP + h, group.z, chunks, o % fours, value, component(max_score, h), component(sum, h));
    }
}

#ifdef ROPE
#ifdef NORM
var<workgroup> key_squares: array<f32, THREADS>;

// Leaves what each eight elements of a kv head's queries, one component each, and of its key add to the sums of squares.
fn leave_squares(id: u32, at: vec3<u32>) {
    if id < LANES {
        var squares = vec4<f32>();
        for (var h = 0u; h < GROUP; h++) {
            let mine = vec4<bool>(vec4<u32>(0u, 1u, 2u, 3u) == vec4<u32>(h));
            squares += select(vec4<f32>(), vec4<f32>(squares_of(at.x + h * LANES * 2u, id)), mine);
        }
        partial[id] = squares;
        key_squares[id] = squares_of(at.y, id);
    }
    workgroupBarrier();
}

// Root mean squares of the queries.
fn query_rms() -> vec4<f32> {
    var sum = vec4<f32>();
    for (var i = 0u; i < LANES; i++) { sum += partial[i]; }
    return vec4<f32>(head_rms(sum.x), head_rms(sum.y), head_rms(sum.z), head_rms(sum.w));
}
#endif

// That of the key.
fn key_rms() -> f32 {
#ifdef NORM
    var sum = 0.0;
    for (var i = 0u; i < LANES; i++) { sum += key_squares[i]; }
    return head_rms(sum);
#else
    return 1.0;
#endif
}

// Eight elements of each query of a kv head, turned; with `is_last` the new key and value get into the cache.
fn take_new(id: u32, lane: u32, kv: u32, is_last: bool) -> array<Eight, 4> {
    let at = heads_at(kv);
    let pos = rows[0].y;
    var rms = vec4<f32>(1.0);
#ifdef NORM
    leave_squares(id, at);
    rms = query_rms();
#endif
    if is_last {
        if id < LANES {
            store_key(new_place(kv) + id, turned_eight(at.y, id, pos, params.d / 4u, key_rms()));
            let at_value = at.z + 2u * id;
            store_value(new_place(kv) + id, Eight(qkv[at_value], qkv[at_value + 1u]));
        }
        storageBarrier();
    }
    var query = array<Eight, 4>();
    for (var h = 0u; h < GROUP; h++) {
        query[h] = turned_eight(at.x + h * LANES * 2u, lane, pos, 0u, component(rms, h));
    }
    return query;
}
#else
// Eight elements of each query of a kv head.
fn take_queries(lane: u32, group: vec2<u32>) -> array<Eight, 4> {
    let first = (group.y * params.heads + group.x * GROUP) * LANES * 2u;
    var query = array<Eight, 4>();
    for (var h = 0u; h < GROUP; h++) {
        query[h] = Eight(q[first + (h * LANES + lane) * 2u], q[first + (h * LANES + lane) * 2u + 1u]);
    }
    return query;
}
#endif

#ifdef KEYS_ACROSS_THREADS
@compute @workgroup_size(KEYS, LANES)
#else
@compute @workgroup_size(LANES, KEYS)
#endif
fn main(
    @builtin(local_invocation_id) local: vec3<u32>,
    @builtin(local_invocation_index) id: u32,
    @builtin(workgroup_id) group: vec3<u32>,
) {
#ifdef KEYS_ACROSS_THREADS
    let lane = local.y;
    let nth = local.x; // of the keys that are read at a time
#else
    let lane = local.x;
    let nth = local.y; // of the keys that are read at a time
#endif
    let width = params.heads / GROUP * LANES; // eights of a row of the cache
    let chunk = chunk_at(group.y, group.z);
    if group.z >= chunk.chunks { return; }
    let n = chunk.end - chunk.begin;
#ifdef ROPE
    let query = take_new(id, lane, group.x, chunk.is_last);
#else
    let query = take_queries(lane, group.xy);
#endif
    var sum = array<Eight, 4>();
    var max_score = vec4<f32>(MIN_SCORE);
    var total = vec4<f32>();
    for (var tile = 0u; tile < n; tile += TILE) {
        let here = n - tile;
        let base = (chunk.begin + tile) * width + group.x * LANES + lane;
        for (var m = 0u; m < PER; m++) {
            let key = m * KEYS + nth;
            if key < here {
                let x = k_at(base + key * width);
                shares[key * LANES + lane] = vec4<f32>(
                    score(query[0], x), score(query[1], x), score(query[2], x), score(query[3], x));
            }
        }
        workgroupBarrier();
        let new_max = weigh(id, chunk.begin + tile, group.x, here, max_score, &total);
        let shrink = exp(max_score - new_max);
        max_score = new_max;
        for (var h = 0u; h < GROUP; h++) { sum[h] = scaled(sum[h], component(shrink, h)); }
        for (var m = 0u; m < PER; m++) {
            let key = m * KEYS + nth;
            if key < here {
                let weight = scores[key];
                let x = v_at(base + key * width);
                for (var h = 0u; h < GROUP; h++) {
                    let value = scaled(x, component(weight, h));
                    sum[h] = Eight(sum[h].a + value.a, sum[h].b + value.b);
                }
            }
        }
        workgroupBarrier();
    }
    for (var h = 0u; h < GROUP; h++) {
        let at = nth * GROUP * LANES * 2u + (h * LANES + lane) * 2u;
        shares[at] = sum[h].a;
        shares[at + 1u] = sum[h].b;
    }
    write_all(id, max_score, total, group, chunk.chunks);
}
