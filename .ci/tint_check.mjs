// Makes the pipeline of every dumped kernel with Dawn, so that Tint, the WGSL compiler of Chrome, has seen it.
// node tint_check.mjs DAWN_NODE DUMP: DUMP is a folder of `cargo run --example dump_shaders`. Exits with 1 if a kernel that real GPUs
// get is refused; kernels for software adapters alone may be, and are counted.
import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { join } from 'node:path';

const [dawn, dump] = process.argv.slice(2);
const { create, globals } = createRequire(import.meta.url)(dawn);
Object.assign(globalThis, globals);
const gpu = create([`backend=${process.env.DAWN_BACKEND ?? 'null'}`]);
const adapter = await gpu.requestAdapter();
const device = await adapter.requestDevice({
    requiredFeatures: ['subgroups', 'shader-f16'].filter(feature => adapter.features.has(feature)),
});

const typeOf = { u: 'uniform', r: 'read-only-storage', w: 'storage' };

// Binding numbers with a letter each, as the index has them.
function layoutOf(bindings) {
    const entries = bindings.split(',').map(text => ({
        binding: parseInt(text, 10),
        visibility: GPUShaderStage.COMPUTE,
        buffer: { type: typeOf[text.at(-1)] },
    }));
    return device.createPipelineLayout({ bindGroupLayouts: [device.createBindGroupLayout({ entries })] });
}

// What is wrong with a kernel, or nothing.
async function problemOf(kernel) {
    const wgsl = readFileSync(join(dump, 'wgsl', `${kernel.id}.wgsl`), 'utf8');
    device.pushErrorScope('validation');
    // naga takes no such line, so the shaders have none.
    const module = device.createShaderModule({ code: kernel.subgroups ? `enable subgroups;\n${wgsl}` : wgsl });
    const error = (await module.getCompilationInfo()).messages.find(message => message.type === 'error');
    let problem = error && `line ${error.lineNum - kernel.subgroups}: ${error.message}`;
    if (!problem) {
        const compute = { module, entryPoint: 'main', constants: kernel.overrides };
        await device.createComputePipelineAsync({ layout: layoutOf(kernel.bindings), compute }).catch(e => { problem = e.message; });
    }
    const scope = await device.popErrorScope();
    return problem ?? scope?.message;
}

const kernels = readFileSync(join(dump, 'index.tsv'), 'utf8').trimEnd().split('\n').map(line => {
    const [id, subgroups, bindings, who, , overrides] = line.split('\t');
    const values = overrides.split(' ').filter(Boolean).map(pair => pair.split('=')).map(([name, value]) => [name, Number(value)]);
    return { id, subgroups: subgroups === 'true', bindings, who, overrides: Object.fromEntries(values) };
});
const refused = { hardware: 0, software: 0 };
for (const kernel of kernels) {
    const problem = await problemOf(kernel);
    if (!problem) continue;
    refused[kernel.who]++;
    if (kernel.who === 'hardware') console.log(`${kernel.id}: ${problem}`);
}
console.log(`${kernels.length} kernels: Tint refuses ${refused.hardware} that real GPUs get, ${refused.software} for software adapters`);
device.destroy();
process.exit(kernels.length > 0 && refused.hardware === 0 ? 0 : 1);
