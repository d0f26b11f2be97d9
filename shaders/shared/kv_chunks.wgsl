// Attention of few rows over the KV cache, in chunks of a row's keys (ops/attention.rs): parameters, bindings, reading the
// cache, and where a chunk leaves its result. With one chunk that is y, else `parts`, which attention_decode_merge adds up.

struct Params {
    heads: u32,
    d: u32,
    scale: f32,
    kv_chunk: u32, // keys up to which a row is one chunk
    max_chunks: u32, // of a row
    n_keys: u32, // of the cache
    kv_heads: u32,
    scales_at: u32, // word of the first scale of integers
    pairs: u32, // elements of a head that turn, halved, with ROPE
    head_eps: f32, // and the norm of heads
    head_floor: f32,
    head_in_bound: f32,
    head_out_bound: f32,
}
@group(0) @binding(1) var<uniform> params: Params;
#ifdef ROPE
#bind var<storage, read> qkv: array<vec4<f32>>; // [1, (heads + 2 kv_heads) · d / 4]
#bind var<storage, read> rows: array<vec4<u32>>; // [1]: token, pos, seq_base, seq_len
#bind var<storage, read> table: array<vec4<f32>>; // [positions, pairs / 2]: cos, sin of two
#ifdef NORM
#bind var<storage, read> qk_weights: array<vec4<f32>>; // [2, d / 4]: of q, of k
#endif
#bind var<storage, read_write> y: array<vec4<f32>>; // [1, heads · d / 4]
#ifdef F16
#bind var<storage, read_write> k: array<vec4<u32>>; // [keys, kv_heads · d / 8]
#bind var<storage, read_write> v: array<vec4<u32>>; // [keys, kv_heads · d / 8]
#else
#bind var<storage, read_write> k: array<vec4<f32>>; // [keys, kv_heads · d / 4]
#bind var<storage, read_write> v: array<vec4<f32>>; // [keys, kv_heads · d / 4]
#endif
#else
#bind var<storage, read> q: array<vec4<f32>>; // [rows, heads · d / 4]
#ifdef INT8
#bind var<storage, read> k: array<vec2<u32>>; // [keys, kv_heads · d / 8], then scales [keys · kv_heads / 2]
#bind var<storage, read> v: array<vec2<u32>>; // [keys, kv_heads · d / 8], then scales [keys · kv_heads / 2]
#else
#ifdef F16
#bind var<storage, read> k: array<vec4<u32>>; // [keys, kv_heads · d / 8]
#bind var<storage, read> v: array<vec4<u32>>; // [keys, kv_heads · d / 8]
#else
#bind var<storage, read> k: array<vec4<f32>>; // [keys, kv_heads · d / 4]
#bind var<storage, read> v: array<vec4<f32>>; // [keys, kv_heads · d / 4]
#endif
#endif
#bind var<storage, read> rows: array<vec4<u32>>; // [rows]: token, pos, seq_base, seq_len
#bind var<storage, read_write> y: array<vec4<f32>>; // [rows, heads · d / 4]
#endif
#bind var<storage, read_write> parts: array<vec4<f32>>; // [rows, heads, chunks, d / 4 + 1]: sums, then max_score and total

const MIN_SCORE: f32 = -1e30; // finite, so that a difference of two is not NaN

struct Eight {
    a: vec4<f32>,
    b: vec4<f32>,
}

#ifdef INT8
fn widen(w: vec2<u32>) -> Eight {
    return Eight(vec4<f32>(unpack4xI8(w.x)), vec4<f32>(unpack4xI8(w.y)));
}

// Eights of k and v, not yet scaled.
fn k_at(i: u32) -> Eight {
    return widen(k[i]);
}

fn v_at(i: u32) -> Eight {
    return widen(v[i]);
}

// The scales of a key's kv head.
fn k_scale(key: u32, kv_head: u32) -> f32 {
    let at = params.scales_at + key * params.kv_heads + kv_head;
    let pair = k[at / 2u];
    return bitcast<f32>(select(pair.x, pair.y, (at & 1u) == 1u));
}

fn v_scale(key: u32, kv_head: u32) -> f32 {
    let at = params.scales_at + key * params.kv_heads + kv_head;
    let pair = v[at / 2u];
    return bitcast<f32>(select(pair.x, pair.y, (at & 1u) == 1u));
}
#else
fn k_scale(key: u32, kv_head: u32) -> f32 {
    return 1.0;
}

fn v_scale(key: u32, kv_head: u32) -> f32 {
    return 1.0;
}

#ifdef F16
fn widen(w: vec4<u32>) -> Eight {
    return Eight(vec4<f32>(unpack2x16float(w.x), unpack2x16float(w.y)),
        vec4<f32>(unpack2x16float(w.z), unpack2x16float(w.w)));
}

fn k_at(i: u32) -> Eight {
    return widen(k[i]);
}

fn v_at(i: u32) -> Eight {
    return widen(v[i]);
}
#else
fn k_at(i: u32) -> Eight {
    return Eight(k[2u * i], k[2u * i + 1u]);
}

fn v_at(i: u32) -> Eight {
    return Eight(v[2u * i], v[2u * i + 1u]);
}
#endif
#endif

// Number of keys of a row, limited to the existing keys so that loops end.
fn keys_of(row: u32) -> u32 {
    return min(rows[row].w, params.n_keys - min(rows[row].z, params.n_keys));
}

// Chunks of a row with `n` keys: of equal lengths, except for the last.
fn chunks_of(n: u32) -> u32 {
    return clamp((n + params.kv_chunk - 1u) / params.kv_chunk, 1u, params.max_chunks);
}

// Keys `begin` to `end` of chunk `chunk` of a row, in the cache.
struct Chunk {
    begin: u32,
    end: u32,
    chunks: u32, // of the row
    is_last: bool, // it holds the row's last key; chunks behind it may be empty
}

fn chunk_at(row: u32, chunk: u32) -> Chunk {
    let first = min(rows[row].z, params.n_keys);
    let n = keys_of(row);
    let chunks = chunks_of(n);
    let per = (n + chunks - 1u) / chunks;
    let begin = min(chunk * per, n);
    let end = min((chunk + 1u) * per, n);
    return Chunk(first + begin, first + end, chunks, begin < end && end == n);
}

// First of the sums of a chunk of a row's head in `parts`; max_score and total are `d / 4` behind it.
fn part_of(row: u32, head: u32, chunk: u32) -> u32 {
    return ((row * params.heads + head) * params.max_chunks + chunk) * (params.d / 4u + 1u);
}

// Writes outputs 4o.. of a head from the sums of one of `chunks` chunks.
fn store_output(row: u32, head: u32, chunk: u32, chunks: u32, o: u32, sums: vec4<f32>, max_score: f32, total: f32) {
    if chunks == 1u {
        y[(row * params.heads + head) * (params.d / 4u) + o] = sums / total;
        return;
    }
    let at = part_of(row, head, chunk);
    parts[at + o] = sums;
    if o == 0u { parts[at + params.d / 4u] = vec4<f32>(max_score, total, 0.0, 0.0); }
}
