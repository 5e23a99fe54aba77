/**
 * 16-bit floats on a device without them, for the variant that no emulator has: 16-bit floats and subgroups together. What
 * a stage holds in `vec4h` is float32, what it stores is packed into words, so that buffers are those of a real device.
 * Names no runtime.
 */
import { GpuDevice } from "../../gpu/device.ts";
import { openDevice, type OpenedDevice } from "../../gpu/open.ts";

const HALVES = `
alias vec4h = vec4f;
fn packed_half(x: vec4f) -> vec2u { return vec2u(pack2x16float(x.xy), pack2x16float(x.zw)); }
fn unpacked_half(x: vec2u) -> vec4f { return vec4f(unpack2x16float(x.x), unpack2x16float(x.y)); }
`;

/** The text of a stage as a device without 16-bit floats takes it; texts that use none are as they were. */
export function withoutHalves(text: string): string {
  const enable = /^enable f16;$/m;
  if (!enable.test(text)) return text;
  // What is enabled stands first.
  const [enabled, rest] = [/^enable (?!f16).*;$/gm, /^enable .*;$/gm];
  const body = text.replace(rest, "")
    .replaceAll("array<vec4h>;", "array<vec2u>;")
    .replace(/\bnarrow\[([^\]]*)\]/g, "unpacked_half(narrow[$1])")
    .replace(/\bout\[([^\]]*)\] = (vec4h\(.*\));/g, "out[$1] = packed_half($2);");
  return [...text.match(enabled) ?? [], HALVES, body].join("\n");
}

/** The adapter as if it had 16-bit floats. */
export async function openWithHalves(): Promise<GpuDevice> {
  const opened = await openDevice(), { info } = opened;
  return new GpuDevice({
    ...opened,
    device: standIn(opened),
    info: { ...info, features: { ...info.features, f16: true } },
  });
}

function standIn({ device }: OpenedDevice): GPUDevice {
  return new Proxy(device, {
    get(target, name) {
      if (name === "createShaderModule") {
        return (wanted: GPUShaderModuleDescriptor) =>
          target.createShaderModule({ ...wanted, code: withoutHalves(wanted.code) });
      }
      const value = Reflect.get(target, name, target);
      return typeof value === "function" ? value.bind(target) : value;
    },
  });
}
