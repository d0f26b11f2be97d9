// The windows of an image as rows (ops/patches.rs). Grid: one workgroup per row of y.

struct Params {
    side: u32,
    channels: u32,
    size: u32, // of a window
    stride: u32,
    pad: u32,
    grid: u32, // windows a side
    front: u32, // rows of zeros
    width: u32, // channels · size², and what makes it a multiple of 4
    step_channel: u32,
    step_pixel: u32,
}
@group(0) @binding(1) var<uniform> params: Params;
#bind var<storage, read> x: array<f32>; // [images, channels, side, side] or [images, side², channels]
#bind var<storage, read_write> y: array<f32>; // [images, front + grid², width]

@compute @workgroup_size(64)
fn main(@builtin(local_invocation_index) id: u32, @builtin(workgroup_id) group: vec3<u32>) {
    let n = params.size;
    let at = group.x * params.width;
    let rows = params.front + params.grid * params.grid;
    let image = group.x / rows * params.channels * params.side * params.side;
    if group.x % rows < params.front {
        for (var i = id; i < params.width; i += 64u) { y[at + i] = 0.0; }
        return;
    }
    let token = group.x % rows - params.front;
    for (var i = id; i < params.width; i += 64u) {
        // Left of and above the image the differences wrap round, beyond its side.
        let row = token / params.grid * params.stride + i / n % n - params.pad;
        let column = token % params.grid * params.stride + i % n - params.pad;
        let channel = i / (n * n);
        var v = 0.0;
        if channel < params.channels && row < params.side && column < params.side {
            v = x[image + channel * params.step_channel + (row * params.side + column) * params.step_pixel];
        }
        y[at + i] = v;
    }
}
