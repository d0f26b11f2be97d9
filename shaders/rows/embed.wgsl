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

// An element of row `token` of the shard.
fn table_at(token: u32, column: u32) -> f32 {
#ifdef GROUPS
    // src/quant/groups.rs: header and the matrix's entry, then codes and scales by tiles of 128 rows.
    let bits = table[5];
    let per_word = 32u / bits;
    let words = (params.width + per_word - 1u) / per_word;
    let tile = token / 128u;
    let word = table[4u * table[4] + (tile * words + column / per_word) * 128u + token % 128u];
    let stored = (word >> (column % 4u * 8u + column % per_word / 4u * bits)) & ((1u << bits) - 1u);
    var code = 2.0 * f32(stored) - 1.0;
    if bits != 1u { code = f32(stored) - select(1.0, 128.0, bits == 8u); }
    let groups = (params.width + table[2] - 1u) / table[2];
    let pair = table[4u * table[9] + (tile * groups + column / table[2]) * 64u + token % 128u / 2u];
    return code * float_of((pair >> (token % 2u * 16u)) & 0xffffu);
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
