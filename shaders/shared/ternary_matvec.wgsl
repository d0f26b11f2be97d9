// 32 columns of four rows of ternary weights against 32 activation codes, for products with few rows.
// Stored codes are code + 1 at 2 bits, and 0 or 1 at 1 bit.

#import column_blocks

#ifdef TABLES
#import lookup_tables

const VEC4S: u32 = 4u;
const NUMBERS: u32 = 1u;

// Sums of a lane's outputs of a tile over every SPLIT_K-th run of 128 columns from `share` on; `act` is the first vec4 of
// the codes.
fn tile_sums(part: Part, tile: u32, lane: u32, share: u32, act: u32) -> array<vec4<i32>, VEC4S> {
    let base = first_words(part, tile, lane);
    let vec4s = code_vec4s();
    found = array<vec4<u32>, VEC4S>();
    for (var first = 8u * share; first < vec4s; first += 8u * SPLIT_K) {
        // Lanes behind the last codes hold those again, and are multiplied by weights of 0.
        let mine = codes[act + min(first + lane_number, vec4s - 1u)];
        bytes[0] = signed_byte(mine, 0u);
        bytes[1] = signed_byte(mine, 1u);
        bytes[2] = signed_byte(mine, 2u);
        bytes[3] = signed_byte(mine, 3u);
        add_columns(part.bits, base, first);
    }
    return array<vec4<i32>, VEC4S>(bitcast<vec4<i32>>(found[0]), bitcast<vec4<i32>>(found[1]),
        bitcast<vec4<i32>>(found[2]), bitcast<vec4<i32>>(found[3]));
}
#else
#import vec4s_per_thread

#ifdef VEC4S4
const AHEAD: u32 = 1u;
#else
#ifdef VEC4S2
const AHEAD: u32 = 1u;
#else
const AHEAD: u32 = 2u; // blocks of columns that are loaded before one is used
#endif
#endif

// The sums of block `i` of those that begin at `first`; 0 behind the last one.
fn counted_in(first: u32, i: u32, blocks: u32, sums: vec4<i32>) -> vec4<i32> {
    return select(vec4<i32>(), sums, i == 0u || first + i * SPLIT_K < blocks);
}

const LANES: u32 = TILE_LANES / VEC4S; // each with VEC4S · 4 consecutive outputs of a tile

// Sums of a lane's outputs of a tile over every SPLIT_K-th block of 32 columns from `share` on; `act` is the first vec4 of
// the codes.
fn tile_sums(part: Part, tile: u32, lane: u32, share: u32, act: u32) -> array<vec4<i32>, VEC4S> {
    let words = row_words(part.bits);
    let blocks = (weights[0].y + 31u) / 32u;
    let base = part.first + tile * words * TILE_LANES + lane * VEC4S;
    var sum = array<vec4<i32>, VEC4S>();
    if part.bits == 1u {
        for (var j0 = share; j0 < blocks; j0 += AHEAD * SPLIT_K) {
            for (var i = 0u; i < AHEAD; i++) {
                let j = min(j0 + i * SPLIT_K, blocks - 1u);
                let a = pairs(codes[act + 2u * j]);
                let b = pairs(codes[act + 2u * j + 1u]);
                let at = base + j * TILE_LANES;
                for (var q = 0u; q < VEC4S; q++) { sum[q] += counted_in(j0, i, blocks, block1(weights[at + q], a, b)); }
            }
        }
    } else {
        for (var j0 = share; j0 < blocks; j0 += AHEAD * SPLIT_K) {
            for (var i = 0u; i < AHEAD; i++) {
                let j = min(j0 + i * SPLIT_K, blocks - 1u);
                let a = pairs(codes[act + 2u * j]);
                let b = pairs(codes[act + 2u * j + 1u]);
                let at = base + 2u * j * TILE_LANES;
                // The last block may be one word; its other activations are 0.
                let next = base + min(2u * j + 1u, words - 1u) * TILE_LANES;
                for (var q = 0u; q < VEC4S; q++) {
                    sum[q] += counted_in(j0, i, blocks, block2(weights[at + q], weights[next + q], a, b));
                }
            }
        }
    }
    return sum;
}
#endif
