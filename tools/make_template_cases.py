"""Writes tests/data/templates.json: chat templates in the shapes that models ship, and what Python makes of them.

The environment is the one that `apply_chat_template` of transformers builds (utils/chat_template_utils.py).
Run: python3 tools/make_template_cases.py   (needs jinja2; 3.1.6 wrote the file that is committed)
"""

import datetime
import json
import pathlib

import jinja2
import jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment

NOW = datetime.datetime(2026, 3, 9, 14, 5, 7)


class Generation(jinja2.ext.Extension):
    """`{% generation %}` marks what is trained on; in a prompt its body is all there is."""

    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller):
        return caller()


def environment():
    def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    def raise_exception(message):
        raise jinja2.exceptions.TemplateError(message)

    env = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = raise_exception
    env.globals["strftime_now"] = NOW.strftime
    return env


USER = [{"role": "user", "content": "Hello, \"you\" & <me>!"}]
SYSTEM = [{"role": "system", "content": "  Be brief.\n"}, *USER]
CHAT = [*SYSTEM, {"role": "assistant", "content": " Hi. "}, {"role": "user", "content": "Why é 日本?"}]
PARTS = [{"role": "user", "content": [{"type": "text", "text": "Look:"}, {"type": "image"}, {"type": "text", "text": "?"}]}]
CALLS = [
    *USER,
    {"role": "assistant", "content": None, "tool_calls": [
        {"type": "function", "function": {"name": "sum", "arguments": {"a": 1, "b": [2.5, None, True], "c": "é\"<"}}}]},
    {"role": "tool", "name": "sum", "content": "3.5"},
    {"role": "tool", "name": "sum", "content": "4"},
]
THOUGHT = [*USER, {"role": "assistant", "content": "<think>\nhm\n</think>\n\nSo."}, {"role": "user", "content": "And?"}]
TOOLS = [{"type": "function", "function": {"name": "sum", "description": "Adds é.", "parameters": {
    "type": "object", "required": ["a"], "properties": {"a": {"type": "integer", "description": "first"},
                                                       "b": {"type": "array", "items": {"type": "number"}}}}}}]

BASE = {"messages": USER, "tools": None, "documents": None, "add_generation_prompt": True,
        "bos_token": "<s>", "eos_token": "</s>"}

CASES = []


def case(name, template, **variables):
    CASES.append((name, template, variables))


CHATML = ("{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
          "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")
case("chatml", CHATML, messages=CHAT)
case("chatml without a generation prompt", CHATML, messages=CHAT, add_generation_prompt=False)
case("chatml with a default system text", """{% for message in messages %}
{% if loop.first and messages[0]['role'] != 'system' %}
{{ '<|im_start|>system\\nYou are helpful.<|im_end|>\\n' }}
{% endif %}
{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}
{% endfor %}
{% if add_generation_prompt %}
{{ '<|im_start|>assistant\\n' }}
{% endif %}
""")
LLAMA2 = """{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}{% set system_message = false %}{% endif %}{% for message in loop_messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}{% if loop.index0 == 0 and system_message != false %}{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}{% else %}{% set content = message['content'] %}{% endif %}{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}{% elif message['role'] == 'assistant' %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"""
case("system merged into the first user turn", LLAMA2, messages=CHAT)
case("system merged, none given", LLAMA2)
case("roles that don't alternate", LLAMA2, messages=[*USER, *USER])
case("system refused", "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}{% for message in messages %}{{ '<start_of_turn>' + (message.role if message.role != 'assistant' else 'model') + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}", messages=SYSTEM)
case("system refused, none given", "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}ok")
LLAMA3 = """{{- bos_token }}
{%- if custom_tools is defined %}
    {%- set tools = custom_tools %}
{%- endif %}
{%- if not tools_in_user_message is defined %}
    {%- set tools_in_user_message = true %}
{%- endif %}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "26 Jul 2024" %}
    {%- endif %}
{%- endif %}
{%- if not tools is defined %}
    {%- set tools = none %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if tools is not none %}
    {{- "Environment: ipython\\n" }}
{%- endif %}
{{- "Today Date: " + date_string + "\\n\\n" }}
{%- if tools is not none and not tools_in_user_message %}
    {%- for t in tools %}
        {{- t | tojson(indent=4) }}
        {{- "\\n\\n" }}
    {%- endfor %}
{%- endif %}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls|length == 1 %}
            {{- raise_exception("This model only supports single tool-calls at once!") }}
        {%- endif %}
        {%- set tool_call = message.tool_calls[0].function %}
        {{- '{"name": "' + tool_call.name + '", ' }}
        {{- '"parameters": ' }}
        {{- tool_call.arguments | tojson }}
        {{- "}" }}
    {%- elif message.role == "tool" or message.role == "ipython" %}
        {{- "<|start_header_id|>ipython<|end_header_id|>\\n\\n" }}
        {%- if message.content is mapping or message.content is iterable %}
            {{- message.content | tojson }}
        {%- else %}
            {{- message.content }}
        {%- endif %}
        {{- "<|eot_id|>" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""
case("headers, a guarded date, tools absent", LLAMA3, messages=CHAT)
case("headers with tools in the system turn", LLAMA3, messages=CALLS, tools=TOOLS, tools_in_user_message=False)
case("headers, two tool calls refused", LLAMA3, messages=[{"role": "assistant", "tool_calls": [1, 2]}])
QWEN = """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}
        {{- messages[0].content + '\\n\\n' }}
    {%- endif %}
    {{- "# Tools\\n\\n<tools>" }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\\n</tools><|im_end|>\\n" }}
{%- else %}
    {%- if messages[0].role == 'system' %}
        {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string and not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.content is string %}
        {%- set content = message.content %}
    {%- else %}
        {%- set content = '' %}
    {%- endif %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set reasoning_content = '' %}
        {%- if message.reasoning_content is string %}
            {%- set reasoning_content = message.reasoning_content %}
        {%- else %}
            {%- if '</think>' in content %}
                {%- set reasoning_content = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
                {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
            {%- endif %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query_index %}
            {%- if loop.last or (not loop.last and reasoning_content) %}
                {{- '<|im_start|>' + message.role + '\\n<think>\\n' + reasoning_content.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
            {%- else %}
                {{- '<|im_start|>' + message.role + '\\n' + content }}
            {%- endif %}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\\n' + content }}
        {%- endif %}
        {%- if message.tool_calls %}
            {%- for tool_call in message.tool_calls %}
                {%- if (loop.first and content) or (not loop.first) %}
                    {{- '\\n' }}
                {%- endif %}
                {%- if tool_call.function %}
                    {%- set tool_call = tool_call.function %}
                {%- endif %}
                {{- '<tool_call>\\n{"name": "' }}
                {{- tool_call.name }}
                {{- '", "arguments": ' }}
                {%- if tool_call.arguments is string %}
                    {{- tool_call.arguments }}
                {%- else %}
                    {{- tool_call.arguments | tojson }}
                {%- endif %}
                {{- '}\\n</tool_call>' }}
            {%- endfor %}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {%- if loop.first or (messages[loop.index0 - 1].role != "tool") %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\\n<tool_response>\\n' }}
        {{- content }}
        {{- '\\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}
            {{- '<|im_end|>\\n' }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}"""
case("thinking, plain", QWEN, messages=CHAT)
case("thinking, earlier thought dropped", QWEN, messages=THOUGHT)
case("thinking switched off", QWEN, enable_thinking=False)
case("thinking with tools and calls", QWEN, messages=CALLS, tools=TOOLS)
case("tools is not none", "{% if tools is not none %}{% for t in tools %}{{ t.name }}{% endfor %}{% endif %}" + CHATML)
case("documents", "{% if documents %}docs{% elif documents is none %}none{% endif %}{{ documents }}")
case("an unguarded date", "{% set today = strftime_now('%d %B %Y') %}<|im_start|>system\nToday is {{ today }}.<|im_end|>\n" + CHATML)
case("dates of all kinds", "{{ strftime_now('%Y-%m-%d %H:%M:%S %A %a %B %b %y %j %I %p %e %U %w %% %-d %-m') }}")
case("a date default", "{{ date_string | default(strftime_now('%b %Y')) }}{{ date_string is defined }}")
case("content in parts", "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}{% for part in m['content'] %}{% if part['type'] == 'image' or 'image' in part %}<image>{% elif 'text' in part %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}{% endfor %}", messages=PARTS)
case("content in parts, selected", "{% set texts = messages[0].content | selectattr('type', 'equalto', 'text') | map(attribute='text') | list %}{{ texts | join('|') }}{{ texts }}{{ messages[0].content | rejectattr('text', 'defined') | list }}", messages=PARTS)
case("generation tags", """{% for m in messages %}
{% if m.role == 'assistant' %}
<|a|>
{% generation %}
{{ m.content }}<|e|>
{% endgeneration %}
{% else %}
<|u|>{{ m.content }}
{% endif %}
{% endfor %}
""", messages=CHAT)
case("a macro of JSON types", """{%- macro json_to_python_type(json_spec) %}
{%- set basic_type_map = {"string": "str", "number": "float", "integer": "int", "boolean": "bool"} %}
{%- if basic_type_map[json_spec.type] is defined %}
{{- basic_type_map[json_spec.type] }}
{%- elif json_spec.type == "array" %}
{{- "list[" + json_to_python_type(json_spec|items) + "]" if false else "list[" + json_to_python_type(json_spec['items']) + "]" }}
{%- else %}
{{- "Any" }}
{%- endif %}
{%- endmacro %}
{%- for tool in tools %}{%- set tool = tool.function %}
{{- '{"name": "' + tool.name + '", "args": {' }}
{%- for name, spec in tool.parameters.properties.items() %}
{{- '"' + name + '": "' + json_to_python_type(spec) + '"' }}{{ ", " if not loop.last }}
{%- endfor %}{{- "}}" }}
{%- endfor %}""", tools=TOOLS)
case("a macro with defaults and keywords", "{% macro turn(role, text='none', end='|') %}<{{ role }}>{{ text }}{{ end }}{% endmacro %}{{ turn('a') }}{{ turn('b', 'x') }}{{ turn('c', end='!') }}{{ turn(role='d', text=messages[0].role) }}")
case("a macro with more arguments", "{% macro all() %}{{ varargs }}{{ kwargs }}{% endmacro %}{{ all(1, 'b', c=2.0) }}")
case("a macro's missing argument", "{% macro f(a) %}[{{ a }}]{{ a is defined }}{% endmacro %}{{ f() }}")
case("a macro called with too many", "{% macro f(a) %}{{ a }}{% endmacro %}{{ f(1, 2) }}")
case("call blocks", "{% macro wrap(tag) %}<{{ tag }}>{{ caller('x') }}</{{ tag }}>{% endmacro %}{% call(y) wrap('b') %}in {{ y }}{% endcall %}")
case("filter blocks", "{% filter upper %}abc {{ messages[0].role }}{% endfilter %}")
case("set blocks", "{% set body %}\n  a {{ messages[0].role }}\n{% endset %}[{{ body }}]{{ body | trim | length }}")
case("loop controls", "{% for i in range(10) %}{% if i == 2 %}{% continue %}{% endif %}{% if i == 5 %}{% break %}{% endif %}{{ i }}{% endfor %}")
case("loop members", "{% for c in 'abcd' %}{{ loop.index }}{{ loop.index0 }}{{ loop.revindex }}{{ loop.revindex0 }}{{ loop.first }}{{ loop.last }}{{ loop.length }}{{ loop.cycle('x', 'y') }}{{ loop.previtem | default('-') }}{{ loop.nextitem | default('+') }}{{ loop.depth }}{{ loop.changed(c) }};{% endfor %}")
case("loops filtered and empty", "{% for m in messages if m.role == 'nobody' %}{{ m }}{% else %}nobody{% endfor %}{% for m in messages if m.role == 'user' %}{{ loop.index }}/{{ loop.length }}{% endfor %}", messages=CHAT)
case("loops over dicts and pairs", "{% set d = {'b': 1, 'a': none, 'c': [1, 2]} %}{% for k in d %}{{ k }}{% endfor %}{% for k, v in d.items() %}{{ k }}={{ v }};{% endfor %}{% for k, v in d | dictsort %}{{ k }}{% endfor %}{% for k, v in d|items %}{{ k }}{% endfor %}")
case("scope of a loop", "{% set x = 'out' %}{% for i in [1, 2] %}{{ x }}{% set x = i %}{{ x }}{% endfor %}{{ x }}{% set ns = namespace(found=false) %}{% for i in [1] %}{% set ns.found = true %}{% endfor %}{{ ns.found }}")
case("scope of an if", "{% if true %}{% set x = 1 %}{% endif %}{{ x }}{% if false %}{% set y = 1 %}{% endif %}[{{ y }}]")
case("what none, booleans and numbers print", "{{ none }} {{ true }} {{ False }} {{ 1 }} {{ 1.0 }} {{ 1e3 if false else 2.50 }} {{ -0.5 }} {{ 10 / 4 }} {{ 10 // 4 }} {{ -7 // 2 }} {{ -7 % 3 }} {{ 2 ** 10 }} {{ 7 / 7 }} {{ 1 + true }}")
case("what lists and dicts print", "{{ [1, 'a', none, true, 1.5] }} {{ {'a': 'it\\'s', \"b\": '\"'} }} {{ (1,) }} {{ ('a', 'b') }} {{ messages }} {{ [] }} {{ {} }}")
case("undefined prints nothing", "[{{ nothing }}][{{ messages[0].nothing }}][{{ messages[9] }}][{{ 'x' if false }}]{{ nothing is defined }}{{ nothing is none }}{{ not nothing }}{{ nothing | default('d') }}{{ '' | default('d') }}{{ '' | default('d', true) }}{{ none | default('n') }}{{ nothing | length }}{% for x in nothing %}x{% endfor %}{{ nothing == other }}")
case("a member of undefined", "{{ nothing.member }}")
case("a member of a missing member", "{{ messages[0].tool.name }}")
case("a member of none", "{{ documents.name }}[{{ tools.x }}]")
case("a member of a member of none", "{{ documents.name.first }}")
case("adding undefined", "{{ 'a' + nothing }}")
case("adding none", "{{ 'a' + none }}")
case("adding a number to a text", "{{ 'a' + 1 }}")
case("joining with a tilde", "{{ 'a' ~ 1 ~ none ~ true ~ nothing ~ 1.5 ~ [1] }}")
case("calling nothing", "{{ nothing() }}")
case("calling a text", "{{ 'a'() }}")
case("looping over none", "{% for x in none %}{{ x }}{% endfor %}")
case("looping over a number", "{% for x in 3 %}{{ x }}{% endfor %}")
case("unpacking too few", "{% for a, b in [[1]] %}{{ a }}{% endfor %}")
case("equality", "{{ 1 == '1' }}{{ 1 == 1.0 }}{{ [1, 2] == [1, 2] }}{{ {'a': [1]} == {'a': [1]} }}{{ none == false }}{{ '' == none }}{{ true == 1 }}{{ 'a' != 'b' }}{{ (1, 2) == [1, 2] }}{{ nothing == none }}")
case("membership", "{{ 'a' in 'abc' }}{{ 'role' in messages[0] }}{{ 2 in [1, 2] }}{{ 'x' not in ['y'] }}{{ [1] in [[1]] }}{{ nothing in [1] }}{{ 'a' in nothing }}{{ none in [none] }}")
case("membership of a number in a text", "{{ 1 in 'abc' }}")
case("order", "{{ 1 < 2 }}{{ 'a' < 'b' }}{{ [1, 2] < [1, 3] }}{{ 2.5 >= 2 }}{{ 'B' > 'a' }}")
case("order of unlike things", "{{ 1 < 'a' }}")
case("and, or, not, ternary", "{{ '' or 'b' }}{{ 'a' and 'b' }}{{ none or [] or 0 }}{{ not [] }}{{ not 'a' in 'b' }}{{ 'x' if messages else 'y' }}{{ 'p' if 0 else 'q' if '' else 'r' }}{{ 1 and none }}")
case("tests", "{{ 'a' is string }}{{ 1 is number }}{{ true is number }}{{ true is integer }}{{ 1.0 is float }}{{ {} is mapping }}{{ [] is sequence }}{{ 'a' is iterable }}{{ 3 is odd }}{{ 4 is even }}{{ none is none }}{{ 1 is boolean }}{{ false is false }}{{ 'A' is upper }}{{ 'a' is lower }}{{ messages is not string }}{{ range is callable }}{{ 1 is not defined }}")
case("tests with arguments", "{{ 9 is divisibleby(3) }}{{ 9 is divisibleby 2 }}{{ 'a' is in ['a', 'b'] }}{{ 'c' is not in ['a'] }}{{ 1 is eq 1 }}{{ 1 is equalto(2) }}{{ 3 is gt 2 and 2 is lt 3 }}{{ 1 is ne(1) }}{{ none is sameas none }}{{ messages[0].role is eq messages[0]['role'] }}{{ 'y' if 2 is ge 2 else 'n' }}")
case("an unknown test", "{{ 1 is nonsense }}")
case("an unknown filter", "{{ 1 | nonsense }}")
case("text methods", "{{ ' a b '.strip() }}|{{ 'xxaxx'.strip('x') }}|{{ 'ab'.upper() }}|{{ 'AB c'.lower() }}|{{ 'a b c'.title() }}|{{ 'hELLO'.capitalize() }}|{{ 'a,b,,c'.split(',') }}|{{ ' a  b '.split() }}|{{ 'a,b,c'.split(',', 1) }}|{{ 'a,b,c'.rsplit(',', 1) }}|{{ 'abc'.replace('b', 'x') }}|{{ 'aaa'.replace('a', 'b', 2) }}|{{ 'abc'.find('c') }}|{{ 'abab'.count('ab') }}|{{ '-'.join(['a', 'b']) }}|{{ 'abc'.startswith(('x', 'a')) }}|{{ 'abc'.endswith('bc') }}|{{ '7'.isdigit() }}|{{ 'ab'.center(6, '*') }}|{{ '7'.zfill(3) }}|{{ 'a\\nb'.splitlines() }}|{{ 'a:b:c'.partition(':') }}|{{ 'pre-x'.removeprefix('pre-') }}|{{ 'x'.ljust(3) }}|{{ 'x'.rjust(3, '.') }}")
case("text formats", "{{ '%s is %d and %.2f' % ('a', 3, 1.5) }}|{{ '%s' % 'b' }}|{{ '{} {1} {name}'.format('a', 'b', name='c') if false else '{0} {name}'.format('a', name='c') }}|{{ '{:>5}|{:<4}|{:.1f}'.format('a', 'b', 2.25) }}|{{ '%s-%s' | format('x', 1) }}")
case("slices", "{% set s = 'abcdef' %}{{ s[1:3] }}|{{ s[:-2] }}|{{ s[-2:] }}|{{ s[::-1] }}|{{ s[::2] }}|{{ s[5:1:-2] }}|{{ s[-1] }}|{{ [1,2,3][1:] }}|{{ [1,2,3][::-1] }}|{{ (1,2,3)[:2] }}|{{ s[10:] }}|{{ messages[-1].role }}|{{ '日本語'[1] }}")
case("dict methods", "{% set d = {'a': 1, 'items': 2, 'n': none} %}{{ d.get('a') }}{{ d.get('x') }}{{ d.get('x', 'y') }}{{ d.get('n', 'z') }}{{ d['items'] }}{{ d.keys() | list }}{{ d.values() | list }}{{ d | length }}{{ d.items() | list }}{{ d.a }}{{ dict(a=1, b=2) }}{{ dict({'x': 1}, y=2) }}")
case("changing a dict", "{% set d = {'a': 1} %}{{ d.update({'b': 2}) }}{{ d }}")
case("changing a list", "{% set l = [1] %}{{ l.append(2) }}{{ l }}")
case("list filters", "{% set l = [3, 1, 2] %}{{ l | sort }}{{ l | sort(reverse=true) }}{{ l | first }}{{ l | last }}{{ l | sum }}{{ l | max }}{{ l | min }}{{ l | reverse | list }}{{ l | join(', ') }}{{ ['b', 'A', 'b'] | unique | list }}{{ ['b', 'A', 'c'] | sort }}{{ l | batch(2) | list }}{{ l | map('string') | list }}{{ l | select('odd') | list }}{{ l | reject('gt', 1) | list }}{{ [] | first }}{{ l | count }}{{ l | slice(2) | list }}")
case("attribute filters", "{{ messages | map(attribute='role') | list }}{{ messages | selectattr('role', 'eq', 'user') | list | length }}{{ messages | rejectattr('role', 'in', ['user', 'system']) | map(attribute='content') | join }}{{ messages | groupby('role') | map('first') | list }}{{ messages | map(attribute='x', default='-') | list }}{{ messages | sort(attribute='role') | map(attribute='role') | join(',') }}", messages=CHAT)
case("text filters", "{{ ' a ' | trim }}|{{ 'ab' | upper }}|{{ 'AB' | lower }}|{{ 'ab cd' | title }}|{{ 'aB' | capitalize }}|{{ 'a\nb\n\nc' | indent }}|{{ 'a\nb' | indent(2, true) }}|{{ 'abc' | replace('b', 'x') }}|{{ 'a' | center(5) }}|{{ '<a>' | escape }}|{{ '<a>' | e | safe }}|{{ 'one two three four' | truncate(10) }}|{{ 'a b' | wordcount }}|{{ 'abc' | length }}|{{ 'abc' | first }}{{ 'abc' | last }}|{{ 'abc' | list }}|{{ 'abc' | reverse }}|{{ 1.5 | string + 'x' }}|{{ none | string }}|{{ 'a b/c' | urlencode }}")
case("number filters", "{{ '42' | int }}{{ 'x' | int }}{{ 'x' | int(7) }}|{{ 3.9 | int }}|{{ '1.5' | float }}|{{ 'x' | float }}|{{ -3 | abs }}|{{ 2.567 | round(2) }}|{{ 2.5 | round }}|{{ 2 | round }}|{{ 2.1 | round(0, 'ceil') }}|{{ true | int }}")
case("tojson", "{{ tools | tojson }}\n{{ tools | tojson(indent=2) }}\n{{ {'b': 1, 'a': [1.0, none, true, '<é>']} | tojson(sort_keys=true) }}{{ 'é' | tojson(ensure_ascii=true) }}{{ {'a': 1, 'b': 2} | tojson(separators=(',', ':')) }}{{ [] | tojson(indent=2) }}{{ 'a/\"\\\\\n' | tojson }}", tools=TOOLS)
case("tojson of undefined", "{{ nothing | tojson }}")
case("trimming blocks", "a\n  {% if true %}\n  b\n  {% endif %}\nc\n  {{ 'd' }}  \n{# e #}\n  {# f #}\ng {% if true %} h {% endif %} i\n\n{% set x = 1 %}\n\nj\n")
case("trimming by signs", "a \n {%- if true -%} \n b \n {%- endif +%}\n c {{- 'd' -}} \n e\n   {%+ if true %}\nf\n{% endif %}\n{#- g -#}\n h")
case("line breaks of Windows", "a\r\n{% if true %}\r\nb\r\n{% endif %}\r\nc\r\n")
case("ending in line breaks", "a\n\n")
case("braces of the text before a tag", "{ {%- if true %}a{ {{- 'b' -}} }{% endif %}{ {#- c #}{ {%- generation %}d{% endgeneration %}{\n")
case("raw", "{% raw %}{{ not }} {% if %}{% endraw %}\nx {%- raw -%}  y {{ }}  {%- endraw -%}  z")
case("comments", "a{# {{ nothing.x.y }} {% if %} #}b{#- x -#}  c")
case("strings", "{{ 'a\\n\\t\\'b\\\\ \\u00e9 \\x41' }}{{ \"it's\" }}{{ 'a' 'b' }}{{ '{{ x }}' }}{{ '%}' }}{{ \"\\d\" }}")
case("joiner, cycler, namespace", "{% set j = joiner('|') %}{{ j() }}a{{ j() }}b{{ j() }}c{% set c = cycler(1, 2) %}{{ c.next() }}{{ c.next() }}{{ c.next() }}{{ c.current }}{% set n = namespace({'a': 1}, b=2) %}{{ n.a }}{{ n.b }}{{ n.c is defined }}")
case("assigning to what is no namespace", "{% set d = {'a': 1} %}{% set d.a = 2 %}")
case("several at once", "{% set a, b = 1, 2 %}{{ a }}{{ b }}{% set (c, d) = ['x', 'y'] %}{{ c }}{{ d }}{% set t = 1, 2 %}{{ t }}")
case("ranges", "{{ range(3) | list }}{{ range(1, 4) | list }}{{ range(5, 0, -2) | list }}{{ range(0) | list }}")
case("a message that raises", "{{ raise_exception('After the \"optional\" system message, roles must alternate: ' ~ messages[0].role) }}")
case("not a template", "{% if %}")
case("an unknown tag", "{% nonsense %}")
case("an open block", "{% for x in messages %}")
case("mistral with tools", """{{ bos_token }}{% set user_messages = messages | selectattr("role", "equalto", "user") | list %}{% for message in messages %}{% if message["role"] == "user" %}{% if tools is not none and (message == user_messages[-1]) %}[AVAILABLE_TOOLS] [{% for tool in tools %}{% set tool = tool.function %}{"type": "function", "function": {{ "{" }}{% for key, val in tool.items() if key != "return" %}{% if val is string %}"{{ key }}": "{{ val }}"{% else %}"{{ key }}": {{ val|tojson }}{% endif %}{% if not loop.last %}, {% endif %}{% endfor %}}}{% if not loop.last %}, {% else %}]{% endif %}{% endfor %}[/AVAILABLE_TOOLS]{% endif %}[INST] {{ message["content"] }}[/INST]{% elif message["role"] == "tool" %}[TOOL_RESULTS] {"content": {{ message.content | string }}}[/TOOL_RESULTS]{% elif message["role"] == "assistant" and message.tool_calls is defined and message.tool_calls is not none %}[TOOL_CALLS] [{% for call in message.tool_calls %}{{ call.function | tojson }}{% if not loop.last %}, {% else %}]{{ eos_token }}{% endif %}{% endfor %}{% endif %}{% endfor %}""", messages=CALLS, tools=TOOLS)
case("phi", "{% for message in messages %}{% if message['role'] == 'system' and message['content'] %}{{'<|system|>\n' + message['content'] + '<|end|>\n'}}{% elif message['role'] == 'user' %}{{'<|user|>\n' + message['content'] + '<|end|>\n'}}{% elif message['role'] == 'assistant' %}{{'<|assistant|>\n' + message['content'] + '<|end|>\n'}}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}", messages=CHAT, add_generation_prompt=False)
case("deepseek", "{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}{% set ns = namespace(is_first=false, is_tool=false, system_prompt='', is_first_sp=true) %}{%- for message in messages %}{%- if message['role'] == 'system' %}{%- if ns.is_first_sp %}{% set ns.system_prompt = ns.system_prompt + message['content'] %}{% set ns.is_first_sp = false %}{%- else %}{% set ns.system_prompt = ns.system_prompt + '\\n\\n' + message['content'] %}{%- endif %}{%- endif %}{%- endfor %}{{ bos_token }}{{ ns.system_prompt }}{%- for message in messages %}{%- if message['role'] == 'user' %}{{ '<｜User｜>' + message['content'] }}{%- elif message['role'] == 'assistant' %}{% set content = message['content'] %}{% if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}{{ '<｜Assistant｜>' + content + '<｜end▁of▁sentence｜>' }}{%- endif %}{%- endfor -%}{% if add_generation_prompt %}{{ '<｜Assistant｜><think>\\n' }}{% endif %}", messages=THOUGHT)
case("command-r", "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set system_message = messages[0]['content'] %}{% elif false == true %}{% set loop_messages = messages %}{% set system_message = 'You are Command-R' %}{% else %}{% set loop_messages = messages %}{% set system_message = false %}{% endif %}{% if system_message != false %}{{ '<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>' + system_message + '<|END_OF_TURN_TOKEN|>' }}{% endif %}{% for message in loop_messages %}{% set content = message['content'] %}{{ '<|START_OF_TURN_TOKEN|>' ~ ('<|USER_TOKEN|>' if message['role'] == 'user' else '<|CHATBOT_TOKEN|>') ~ content.strip() ~ '<|END_OF_TURN_TOKEN|>' }}{% endfor %}", messages=CHAT)
case("granite", """{%- set thinking_prompt = '' if not thinking is defined or not thinking else 'Think.' %}
{%- if messages[0]['role'] == 'system' %}
 {%- set system_message = messages[0]['content'] %}
 {%- set loop_messages = messages[1:] %}
 {%- else %}
 {%- set system_message = "Knowledge Cutoff Date: April 2024.
Today's Date: " + strftime_now('%B %d, %Y') + ".
You are Granite." + thinking_prompt %}
 {%- set loop_messages = messages %}
{%- endif %}
{{- '<|start_of_role|>system<|end_of_role|>' + system_message + '<|end_of_text|>
' }}
{%- for message in loop_messages %}
{{- '<|start_of_role|>' + message['role'] + '<|end_of_role|>' + message['content'] + '<|end_of_text|>
' }}
 {%- if loop.last and add_generation_prompt %}
 {{- '<|start_of_role|>assistant' }}
 {%- if controls %}{{- ' ' + controls | tojson() }}{%- endif %}
 {{- '<|end_of_role|>' }}
 {%- endif %}
{%- endfor %}""")
case("smollm3 modes", """{%- if enable_thinking is not defined -%}{%- set enable_thinking = true -%}{%- endif -%}
{%- set reasoning_mode = "/think" if enable_thinking else "/no_think" -%}
{%- set system = messages[0].content if messages[0].role == 'system' else '' -%}
{%- if "/no_think" in system -%}{%- set reasoning_mode = "/no_think" -%}{%- endif -%}
{%- set custom = system.replace("/no_think", "").replace("/think", "").rstrip() -%}
{{- "Reasoning Mode: " + reasoning_mode + "\\n\\n" -}}
{%- set today = strftime_now("%d %B %Y") -%}
{{- "Today Date: " ~ today ~ "\\n" -}}
{{ custom }}""", messages=[{"role": "system", "content": "Short. /no_think"}, *USER])
case("gemma with typed parts", """{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- if messages[0]['content'] is string -%}
        {%- set first_user_prefix = messages[0]['content'] + '

' -%}
    {%- else -%}
        {%- set first_user_prefix = messages[0]['content'][0]['text'] + '

' -%}
    {%- endif -%}
    {%- set loop_messages = messages[1:] -%}
{%- else -%}
    {%- set first_user_prefix = "" -%}
    {%- set loop_messages = messages -%}
{%- endif -%}
{%- for message in loop_messages -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception("Conversation roles must alternate user/assistant/user/assistant/...") }}
    {%- endif -%}
    {%- if (message['role'] == 'assistant') -%}
        {%- set role = "model" -%}
    {%- else -%}
        {%- set role = message['role'] -%}
    {%- endif -%}
    {{ '<start_of_turn>' + role + '
' + (first_user_prefix if loop.first else "") }}
    {%- if message['content'] is string -%}
        {{ message['content'] | trim }}
    {%- elif message['content'] is iterable -%}
        {%- for item in message['content'] -%}
            {%- if item['type'] == 'image' -%}
                {{ '<start_of_image>' }}
            {%- elif item['type'] == 'text' -%}
                {{ item['text'] | trim }}
            {%- endif -%}
        {%- endfor -%}
    {%- else -%}
        {{ raise_exception("Invalid content type") }}
    {%- endif -%}
    {{ '<end_of_turn>
' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{'<start_of_turn>model
'}}
{%- endif -%}
""", messages=CHAT)
case("with blocks", "{% with a = 1, b = 'x' %}{{ a }}{{ b }}{% endwith %}[{{ a }}]")
case("recursive loops", "{% for x in [[1, [2]], [3]] recursive %}{{ x if x is number else loop(x) }}{% endfor %}")
case("chained comparison", "{{ 1 < 2 < 3 }}{{ 3 > 2 > 2 }}")
case("chained comparison that is not one after the other", "{{ 3 > 2 > 1 }}")
case("tuples", "{{ () }}{{ (1,) }}{{ (1, 2,) }}{{ (messages | length, ) }}{{ 'ab'.startswith(('a',)) }}{{ (1) }}{% for x in (1, 2) %}{{ x }}{% endfor %}{{ 'a' in ('a',) }}")
case("numbers written otherwise", "{{ 1e3 }} {{ 2.5e-4 }} {{ 1_000 }} {{ 1e20 }} {{ 123456789.125 }}")
case("do", "{% do messages %}")


def outcome(env, template, variables):
    try:
        return {"text": env.from_string(template).render(**{**BASE, **variables})}
    except jinja2.exceptions.TemplateSyntaxError as error:
        return {"error": "syntax", "message": error.message}
    except jinja2.exceptions.SecurityError as error:
        return {"error": "security", "message": str(error)}
    except jinja2.exceptions.UndefinedError as error:
        return {"error": "undefined", "message": str(error)}
    except jinja2.exceptions.TemplateError as error:
        return {"error": "raised", "message": str(error)}
    except Exception as error:
        return {"error": type(error).__name__, "message": str(error)}


def main():
    names = [name for name, _, _ in CASES]
    assert len(set(names)) == len(names), "two cases have one name"
    env = environment()
    cases = [
        {"name": name, "template": template, "variables": variables, **outcome(env, template, variables)}
        for name, template, variables in CASES
    ]
    now = {"year": NOW.year, "month": NOW.month, "day": NOW.day,
           "hour": NOW.hour, "minute": NOW.minute, "second": NOW.second}
    path = pathlib.Path(__file__).parent.parent / "tests" / "data" / "templates.json"
    data = {"jinja2": jinja2.__version__, "now": now, "variables": BASE, "cases": cases}
    path.write_text(json.dumps(data, ensure_ascii=False, indent=1) + "\n")
    print(f"{len(cases)} cases, {sum('error' in each for each in cases)} of them errors")


if __name__ == "__main__":
    main()
