// x[r] = table[token of row r] or image[r], clamped where the row's flags say so (ops/embed.rs).
// Grid: one workgroup per row.
#import bounds

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
#bind var<storage, read> table: array<u32>; // [shard, width] f32, or f16 in pairs
#ifdef IMAGE
#bind var<storage, read> image: array<f32>; // [rows, width]
#endif
#bind var<storage, read_write> x: array<f32>; // [rows, width]

fn table_at(i: u32) -> f32 {
#ifdef F16
    let pair = unpack2x16float(table[i / 2u]);
    return select(pair.x, pair.y, (i & 1u) == 1u);
#else
    return bitcast<f32>(table[i]);
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
        let v = table_at((token - params.first) * params.width + i);
        x[row * params.width + i] = select(v, bounded(v, params.bound), clamped);
    }
}
