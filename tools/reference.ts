/** The API reference by typedoc: `deno run -A tools/reference.ts FOLDER` writes it; the check looks for what it lacks. */
import { join } from "node:path";
import process from "node:process";
import { Application, LogLevel, ReflectionKind, type TypeDocOptions } from "typedoc";
import { ROOT } from "./repository.ts";

const OPTIONS: TypeDocOptions = {
  name: "palisade-kv",
  entryPoints: [join(ROOT, "mod.ts"), join(ROOT, "core/mod.ts")],
  tsconfig: join(ROOT, "tsconfig.json"),
  // The checks before this one have compiled everything.
  skipErrorChecking: true,
  excludePrivate: true,
  disableGit: true,
  sourceLinkTemplate: "{path}",
  readme: "none",
  validation: { notDocumented: true, notExported: false, invalidLink: false },
  // Names of their own; what a property is, its name and its interface may say together.
  requiredToBeDocumented: ["Variable", "Function", "Class", "Interface", "TypeAlias", "Method", "Accessor"],
  logLevel: LogLevel.Warn,
};

/** Public names without a word about them. */
export async function undocumentedNames(): Promise<string[]> {
  const app = await Application.bootstrap({ ...OPTIONS, emit: "none" });
  const project = await app.convert();
  if (!project) return ["typedoc could not read mod.ts and core/mod.ts"];
  const wanted = [
    ReflectionKind.Variable,
    ReflectionKind.Function,
    ReflectionKind.Class,
    ReflectionKind.Interface,
    ReflectionKind.TypeAlias,
    ReflectionKind.Method,
    ReflectionKind.Accessor,
  ].reduce((all, kind) => all | kind, 0);
  const bare = project.getReflectionsByKind(wanted).filter((each) => {
    // Symbols, such as that of disposal, say what they are.
    return !each.name.startsWith("[") && !each.flags.isInherited && each.isDeclaration() && !each.hasComment() &&
      !each.signatures?.some((signature) => signature.hasComment()) && !each.getSignature?.hasComment();
  });
  return [...new Set(bare.map((each) => each.getFullName().replace(/^(mod|core\/mod)\./, "")))].sort();
}

if (import.meta.main) {
  const [folder] = process.argv.slice(2);
  if (!folder) throw new Error("Say where: deno run -A tools/reference.ts FOLDER");
  const app = await Application.bootstrapWithPlugins(OPTIONS);
  const project = await app.convert();
  if (!project) process.exit(1);
  await app.generateDocs(project, folder);
}
