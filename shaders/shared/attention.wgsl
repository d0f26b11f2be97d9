// Parameters of the attentions (ops/attention.rs), and reading queries and keys. A kernel with CACHED binds `rows`; with
// ODD heads have an odd width, or begin at odd columns.
#import step

const MIN_SCORE: f32 = -1e30; // finite, so that a difference of two is not NaN

struct Params {
    counted_by: u32,
    rows: u32,
    per_row: u32, // queries of a leading row
    rows_per_matrix: u32, // queries that read the same keys
    heads: u32,
    group: u32, // query heads for a kv head
    d: u32,
    n_keys: u32, // of those queries, or of the cache
    q_at: u32,
    q_width: u32,
    k_at: u32,
    k_width: u32,
    v_at: u32,
    v_width: u32,
    mask_width: u32, // 0 without a mask
    scale: f32,
    kv_heads: u32,
    scales_at: u32, // word of the first scale of integers
}
@group(0) @binding(1) var<uniform> params: Params;
#bind var<storage, read> q: array<f32>; // [rows, q_width]
#bind var<storage, read> k: array<u32>; // [keys, k_width] f32, f16 in pairs, or integers in fours and their scales [keys, kv_heads]

// The keys of a row: first and count, limited to the existing keys so that loops end.
fn span(row: u32) -> vec2<u32> {
#ifdef CACHED
    let first = min(rows[row].z, params.n_keys);
    return vec2<u32>(first, min(rows[row].w, params.n_keys - first));
#else
    return vec2<u32>(row / params.rows_per_matrix * params.n_keys, params.n_keys);
#endif
}

// Where a row's query head begins in q.
fn query_at(row: u32, head: u32) -> u32 {
    return row * params.q_width + params.q_at + head * params.d;
}

// Where a key's kv head begins in k.
fn key_at(key: u32, kv_head: u32) -> u32 {
    return key * params.k_width + params.k_at + kv_head * params.d;
}

// What scores of a key's kv head are multiplied by, beside the attention's own factor.
fn k_scale(key: u32, kv_head: u32) -> f32 {
#ifdef INT8
    return bitcast<f32>(k[params.scales_at + key * params.kv_heads + kv_head]);
#else
    return 1.0;
#endif
}

// Two neighbouring integers of a word, from an even one on.
fn two_integers(word: u32, i: u32) -> vec2<f32> {
    let begin = (i & 2u) * 8u;
    return vec2<f32>(vec2<i32>(vec2<u32>(word) << vec2<u32>(24u - begin, 16u - begin)) >> vec2<u32>(24u));
}

// Element i of k, not yet scaled.
fn k_one(i: u32) -> f32 {
#ifdef INT8
    let pair = two_integers(k[i / 4u], i);
    return select(pair.x, pair.y, (i & 1u) == 1u);
#else
#ifdef F16
    let pair = unpack2x16float(k[i / 2u]);
    return select(pair.x, pair.y, (i & 1u) == 1u);
#else
    return bitcast<f32>(k[i]);
#endif
#endif
}

// Elements i and i + 1 of k, not yet scaled; i is even, but with ODD.
fn k_pair(i: u32) -> vec2<f32> {
#ifdef ODD
    return vec2<f32>(k_one(i), k_one(i + 1u));
#else
#ifdef INT8
    return two_integers(k[i / 4u], i);
#else
#ifdef F16
    return unpack2x16float(k[i / 2u]);
#else
    return vec2<f32>(bitcast<f32>(k[i]), bitcast<f32>(k[i + 1u]));
#endif
#endif
#endif
}
