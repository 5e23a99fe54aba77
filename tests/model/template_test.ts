import assert from "node:assert/strict";
import { resourceError } from "../../core/errors.ts";
import { renderChat, type RenderOptions } from "../../model/text/template.ts";
import renderTemplate from "../../model/text/template_worker.ts";
import { currentRuntime } from "../../runtime/mod.ts";

const runtime = await currentRuntime();
const NOW = { year: 2026, month: 3, day: 9, hour: 14, minute: 5, second: 7 };
const USER = [{ role: "user", content: "hi" }] as const;

function render(template: string, options: Partial<RenderOptions> = {}): Promise<string> {
  return renderChat(template, { messages: USER }, { runtime, ...options });
}

/** The worker's function called here, where coverage sees it. */
function renderHere(template: string, limits: { maxLength?: number; timeoutMs?: number } = {}) {
  const { maxLength = 1000, timeoutMs = 5000 } = limits;
  return renderTemplate({ template, inputs: [{ variables: { messages: USER }, now: NOW, maxLength }], timeoutMs })[0];
}

function textHere(template: string): string {
  const reply = renderHere(template);
  assert.ok("text" in reply, JSON.stringify(reply));
  return reply.text;
}

function refusal(template: string, limits = {}): string {
  const reply = renderHere(template, limits);
  assert.ok("refused" in reply, `rendered ${JSON.stringify(reply).slice(0, 100)}`);
  return reply.refused;
}

/** Doubles `start` sixty times. */
const doubled = (start: string) =>
  `{% set ns = namespace(x=${start}) %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}{{ ns.x }}`;

/** Some 10^15 steps. */
const ENDLESS = "{% set r = range(1000) %}" + "{% for i in r %}".repeat(5) + "{% if i == -1 %}x{% endif %}" +
  "{% endfor %}".repeat(5);

Deno.test("renderChat() gives the template its messages, tokens and generation prompt", async () => {
  const template =
    "{{ bos_token }}{% for m in messages %}[{{ m.role }}|{{ m['content'] }}]{{ eos_token }}{% endfor %}" +
    "{% if add_generation_prompt %}>{% endif %}";
  const messages = [{ role: "system", content: "s" }, { role: "user", content: "u" }] as const;
  assert.equal(
    await renderChat(template, { messages, bosToken: "<b>", eosToken: "<e>" }, { runtime }),
    "<b>[system|s]<e>[user|u]<e>>",
  );
  assert.equal(await renderChat(template, { messages: USER, addGenerationPrompt: false }, { runtime }), "[user|hi]");
});

Deno.test("renderChat() trims blocks as chat templates expect", async () => {
  assert.equal(await render("a\n  {% if true %}\nb\n  {% endif %}\nc"), "a\nb\nc");
});

Deno.test("renderChat() ends a template that would never end", async () => {
  await assert.rejects(render(ENDLESS, { timeoutMs: 200 }), {
    name: "PalisadeError",
    kind: "input",
    code: "template.timeout",
    where: "tokenizer.chat_template",
    message: /200 ms/,
  });
});

Deno.test("renderChat() stops text and lists that explode", async () => {
  for (const start of ["'abcdefgh'", "[1]"]) {
    await assert.rejects(render(doubled(start)), { code: "template.size", message: /intermediate/ });
  }
});

Deno.test("renderChat() stops a long result and counts the messages as given", async () => {
  const template = "{{ messages[0].content }}{{ messages[0].content }}";
  assert.equal(await render(template, { maxLength: 2 }), "hihi");
  await assert.rejects(render(template, { maxLength: 1 }), { code: "template.size", message: /4 characters.* 3/ });
  await assert.rejects(render("{% for i in range(50000) %}" + "a".repeat(50) + "{% endfor %}"), {
    code: "template.size",
    message: /2500000 characters/,
  });
});

Deno.test("renderChat() says what a template raised, in short", async () => {
  await assert.rejects(render("{{ raise_exception('Only user messages') }}"), {
    code: "template.failed",
    kind: "input",
    message: /Only user messages/,
  });
  await assert.rejects(render(`{{ raise_exception('${"long ".repeat(1000)}') }}`), (error: Error) => {
    return error.message.length < 400;
  });
});

Deno.test("renderChat() refuses what is not Jinja", async () => {
  for (const template of ["{% if %}", "{{ x ", "{% for %}", "{{ messages | no_such_filter }}", "{{ nothing() }}"]) {
    await assert.rejects(render(template), { code: "template.failed" }, template);
  }
});

Deno.test("renderChat() refuses a template of more than a mebibyte unread", async () => {
  const runSandboxed = () => assert.fail("rendered");
  await assert.rejects(render("x".repeat(1024 * 1024 + 1), { runtime: { runSandboxed } }), { code: "template.size" });
});

Deno.test("renderChat() turns the sandbox's refusals into the template's", async () => {
  const failing = (error: Error) => ({ runtime: { runSandboxed: () => Promise.reject(error) } });
  const sandbox = (code: string) => failing(resourceError(code, "Stopped worker"));
  await assert.rejects(render("", sandbox("sandbox.timeout")), { code: "template.timeout", kind: "input" });
  await assert.rejects(render("", sandbox("sandbox.memory")), { code: "template.size", kind: "input" });
  await assert.rejects(render("", sandbox("sandbox.other")), { code: "sandbox.other" });
  await assert.rejects(render("", failing(new TypeError("bug"))), TypeError);
});

Deno.test("renderChat() gives up when it is aborted", async () => {
  await assert.rejects(render(ENDLESS, { signal: AbortSignal.timeout(100) }), { name: "TimeoutError" });
});

Deno.test("renderTemplate() stops time, size and ranges by itself", () => {
  assert.equal(refusal(ENDLESS, { timeoutMs: 50 }), "timeout");
  assert.equal(refusal(doubled("'abcdefgh'")), "size");
  assert.equal(refusal(doubled("[1]")), "size");
  assert.equal(refusal("{{ messages[0].content * messages }}"), "failed");
  assert.equal(refusal("{{ 'abc' }}", { maxLength: 2 }), "size");
  for (const range of ["1000000000", "0, 1000000000", "-1000000000, 0"]) {
    assert.equal(refusal(`{{ range(${range}) }}`), "size", range);
  }
  for (const range of ["1, 2, 0", "0, 1, 0.000001", "'x'", ""]) {
    assert.equal(refusal(`{{ range(${range}) }}`), "failed");
  }
});

Deno.test("renderTemplate() has the range of Python", () => {
  assert.equal(textHere("{{ range(3) | join(' ') }}"), "0 1 2");
  assert.equal(textHere("{{ range(1, 8, 3) | join(' ') }}"), "1 4 7");
  assert.equal(textHere("{{ range(5, 0, -2) | join(' ') }}"), "5 3 1");
  assert.equal(textHere("{{ range(5, 0) | length }}"), "0");
});

Deno.test("renderTemplate() tells the date it is given, and whether the template asked", () => {
  assert.deepEqual(renderHere("{{ strftime_now('%d %B %Y') }}"), { text: "09 March 2026", dated: true });
  assert.deepEqual(renderHere("{{ strftime_now is defined }}"), { text: "True", dated: false });
});

Deno.test("renderTemplate() keeps text and lists from being filled up without end", () => {
  for (
    const big of ["'a' * 99999999999", "[1] * 9999999", "'a'.center(99999999999)", "'a' | indent(99999999999, true)"]
  ) {
    assert.equal(refusal(`{{ ${big} }}`), "failed", big);
  }
});

Deno.test("renderTemplate() reaches nothing of JavaScript", () => {
  for (const name of ["constructor", "__proto__", "toString", "hasOwnProperty", "globalThis", "prototype"]) {
    assert.equal(textHere(`[{{ ${name} }}{{ {}.${name} }}{{ ''.${name} }}{{ [].${name} }}{{ {}['${name}'] }}]`), "[]");
    assert.equal(refusal(`{{ '' | ${name} }}`), "failed");
    assert.equal(refusal(`{{ '' is ${name} }}`), "failed");
  }
});

Deno.test("renderTemplate() answers mappings, none and undefined", () => {
  const template = "{% set d = {'a': 1} %}{{ d.a }}{{ none is none }}{{ missing is defined }}{{ True }}{{ false }}";
  assert.ok("text" in renderHere(template));
});

Deno.test("renderTemplate() ends endless recursion", () => {
  assert.equal(refusal("{{ " + "(".repeat(200_000)), "failed");
});
