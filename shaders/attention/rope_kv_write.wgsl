// Rotates q and k by each row's position, stores k and v in the cache (ops/rope_kv_write.rs).
// Grid: one workgroup per row; a thread takes two neighbouring elements of both halves of a head at a time, so that f16
// pairs are written whole; with PAIRS, where halves are not whole pairs, two of a head.
// Source: Su et al. 2021, half-split form.

struct Params {
    heads: u32,
    kv_heads: u32,
    d: u32,
}
@group(0) @binding(1) var<uniform> params: Params;
#bind var<storage, read> qkv: array<f32>; // [rows, (heads + 2 kv_heads) · d]
#bind var<storage, read> rows: array<vec4<u32>>; // [rows]: token, pos, seq_base, seq_len
#bind var<storage, read> table: array<vec2<f32>>; // [positions, d / 2]: cos, sin
#bind var<storage, read_write> q: array<f32>; // [rows, heads · d]
#bind var<storage, read_write> k_cache: array<u32>; // [capacity, kv_heads · d] f32, or f16 in pairs
#bind var<storage, read_write> v_cache: array<u32>; // [capacity, kv_heads · d]

fn store_k(at: u32, v: vec2<f32>) {
#ifdef F16
    k_cache[at / 2u] = pack2x16float(v);
#else
    k_cache[at] = bitcast<u32>(v.x);
    k_cache[at + 1u] = bitcast<u32>(v.y);
#endif
}

fn store_v(at: u32, v: vec2<f32>) {
#ifdef F16
    v_cache[at / 2u] = pack2x16float(v);
#else
    v_cache[at] = bitcast<u32>(v.x);
    v_cache[at + 1u] = bitcast<u32>(v.y);
#endif
}

#ifdef PAIRS
// Element j of the rotated head whose elements begin at `x`.
fn rotated(x: u32, j: u32, half: u32, pos: u32) -> f32 {
    let upper = j >= half;
    let pair = table[pos * half + select(j, j - half, upper)];
    let other = qkv[x + select(j + half, j - half, upper)];
    return qkv[x + j] * pair.x + select(-other, other, upper) * pair.y;
}

@compute @workgroup_size(64)
fn main(@builtin(local_invocation_index) id: u32, @builtin(workgroup_id) group: vec3<u32>) {
    let row = rows[group.x];
    let d = params.d;
    let half = d / 2u;
    let all = params.heads + 2u * params.kv_heads;
    let cache = (row.y + row.z) * params.kv_heads * d;
    for (var i = id; i < all * half; i += 64u) {
        let head = i / half;
        let j = i % half * 2u;
        let x = (group.x * all + head) * d;
        if head >= params.heads + params.kv_heads {
            let at = cache + (head - params.heads - params.kv_heads) * d + j;
            store_v(at, vec2<f32>(qkv[x + j], qkv[x + j + 1u]));
            continue;
        }
        let both = vec2<f32>(rotated(x, j, half, row.y), rotated(x, j + 1u, half, row.y));
        if head < params.heads {
            let at = (group.x * params.heads + head) * d + j;
            q[at] = both.x;
            q[at + 1u] = both.y;
        } else {
            store_k(cache + (head - params.heads) * d + j, both);
        }
    }
}
#else
@compute @workgroup_size(64)
fn main(@builtin(local_invocation_index) id: u32, @builtin(workgroup_id) group: vec3<u32>) {
    let row = rows[group.x];
    let d = params.d;
    let half = d / 2u;
    let vec4s = d / 4u;
    let all = params.heads + 2u * params.kv_heads;
    let cache = (row.y + row.z) * params.kv_heads * d;
    for (var i = id; i < all * vec4s; i += 64u) {
        let head = i / vec4s;
        let j = i % vec4s * 2u;
        let x = (group.x * all + head) * d + j;
        let a = vec2<f32>(qkv[x], qkv[x + 1u]);
        let b = vec2<f32>(qkv[x + half], qkv[x + half + 1u]);
        if head >= params.heads + params.kv_heads {
            let at = cache + (head - params.heads - params.kv_heads) * d + j;
            store_v(at, a);
            store_v(at + half, b);
            continue;
        }
        let t0 = table[row.y * half + j];
        let t1 = table[row.y * half + j + 1u];
        let cos = vec2<f32>(t0.x, t1.x);
        let sin = vec2<f32>(t0.y, t1.y);
        let first = a * cos - b * sin;
        let second = b * cos + a * sin;
        if head < params.heads {
            let at = (group.x * params.heads + head) * d + j;
            q[at] = first.x;
            q[at + 1u] = first.y;
            q[at + half] = second.x;
            q[at + half + 1u] = second.y;
        } else {
            let at = cache + (head - params.heads) * d + j;
            store_k(at, first);
            store_k(at + half, second);
        }
    }
}
#endif
