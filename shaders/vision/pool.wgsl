// Each channel's largest value, or mean, over each window of an image (ops/pool.rs). Grid: one thread per element of y.
#import step
#import bounds

struct Params {
    counted_by: u32,
    images: u32,
    side: u32,
    channels: u32,
    size: u32, // of a window
    stride: u32,
    pad: u32,
    grid: u32, // windows a side
}
@group(0) @binding(1) var<uniform> params: Params;
#bind var<storage, read> x: array<f32>; // [images, side², channels]
#bind var<storage, read_write> y: array<f32>; // [images, grid², channels]

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let windows = params.grid * params.grid;
    let token = id.x / params.channels % windows;
    let channel = id.x % params.channels;
    let image = id.x / params.channels / windows;
    if image >= counted(params.counted_by, params.images) { return; }
    var n = 0.0;
    var sum = 0.0;
    var max_order = -0x7fffffff;
    for (var i = 0u; i < params.size * params.size; i++) {
        // Left of and above the image the differences wrap round, beyond its side.
        let row = token / params.grid * params.stride + i / params.size - params.pad;
        let column = token % params.grid * params.stride + i % params.size - params.pad;
        if row < params.side && column < params.side {
            let v = x[((image * params.side + row) * params.side + column) * params.channels + channel];
            max_order = max(max_order, order_of(v));
            sum += v;
            n += 1.0;
        }
    }
#ifdef MAX
    y[id.x] = of_order(max_order);
#endif
#ifdef MEAN
    y[id.x] = sum / n;
#endif
}
