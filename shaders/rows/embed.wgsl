// x[r] = table[token of row r] or image[r], clamped where the row's flags say so (ops/embed.rs).
// Grid: one workgroup per row.
#import bounds
#import half_floats

const IMAGE_FLAG: u32 = 0x80000000u;
const CLAMP_FLAG: u32 = 0x40000000u;

struct Params {
    width: u32,
    first: u32,
    shard: u32,
    vocab: u32,
    bound: f32,
    word: u32, // of a row, that picks the vector
}
@group(0) @binding(1) var<uniform> params: Params;
#bind var<storage, read> rows: array<vec4<u32>>; // [rows]: token, pos, seq_base, seq_len
#bind var<storage, read> table: array<u32>; // [shard, width] f32, or f16 in pairs; or a stack of one matrix
#ifdef IMAGE
#bind var<storage, read> image: array<f32>; // [rows, width]
#endif
#bind var<storage, read_write> x: array<f32>; // [rows, width]

#ifdef GROUPS
// Word `j` of the `words` words of row `token`.
fn word_at(token: u32, j: u32, words: u32) -> u32 {
    return table[4u * table[4] + (token / 128u * words + j) * 128u + token % 128u];
}

fn code_at(token: u32, column: u32, bits: u32) -> f32 {
    let k = column % 16u / 4u;
    let byte = column % 4u * 8u;
    if bits == 6u {
        // src/quant/six_bits.rs: 13 words for 64 columns.
        let words = 13u * ((params.width + 63u) / 64u);
        let unit = 13u * (column / 64u);
        let first = unit + 1u + 3u * (column % 64u / 16u);
        let lower = (word_at(token, first + k / 2u, words) >> (byte + 4u * (k % 2u))) & 15u;
        let upper = (word_at(token, first + 2u, words) >> (byte + 2u * k)) & 3u;
        let integer = bitcast<i32>(word_at(token, unit, words) << (24u - 8u * (column % 64u / 16u))) >> 24u;
        return f32(integer * (i32(lower + 16u * upper) - 32));
    }
    let per_word = 32u / bits;
    let word = word_at(token, column / per_word, (params.width + per_word - 1u) / per_word);
    let stored = f32((word >> (byte + column % per_word / 4u * bits)) & ((1u << bits) - 1u));
    if bits == 1u { return 2.0 * stored - 1.0; }
    return stored - select(1.0, 128.0, bits == 8u);
}
#endif

// An element of row `token` of the shard.
fn table_at(token: u32, column: u32) -> f32 {
#ifdef GROUPS
    // src/quant/groups.rs: header and the matrix's entry, then codes and scales by tiles of 128 rows.
    let bits = table[5];
    let groups = (params.width + table[2] - 1u) / table[2];
    let pair = table[4u * table[9] + (token / 128u * groups + column / table[2]) * 64u + token % 128u / 2u];
    let scale = float_of((pair >> (token % 2u * 16u)) & 0xffffu);
    return bitcast<f32>(table[11]) * (scale * code_at(token, column, bits));
#else
    let i = token * params.width + column;
#ifdef F16
    let pair = unpack2x16float(table[i / 2u]);
    return select(pair.x, pair.y, (i & 1u) == 1u);
#else
    return bitcast<f32>(table[i]);
#endif
#endif
}

@compute @workgroup_size(64)
fn main(@builtin(local_invocation_index) id: u32, @builtin(workgroup_id) group: vec3<u32>) {
    let row = group.x;
    let word = rows[row][params.word];
    let clamped = (word & (IMAGE_FLAG | CLAMP_FLAG)) != 0u;
#ifdef IMAGE
    if (word & IMAGE_FLAG) != 0u {
        for (var i = id; i < params.width; i += 64u) {
            let at = row * params.width + i;
            x[at] = bounded(image[at], params.bound);
        }
        return;
    }
#endif
    let token = min(word & ~(IMAGE_FLAG | CLAMP_FLAG), params.vocab - 1u);
    if token < params.first || token >= params.first + params.shard { return; }
    for (var i = id; i < params.width; i += 64u) {
        let v = table_at(token - params.first, i);
        x[row * params.width + i] = select(v, bounded(v, params.bound), clamped);
    }
}
