/** The tree that `@huggingface/jinja` parses a template into, as far as it is read here. */
export interface Identifier {
  readonly type: "Identifier";
  readonly value: string;
}
export interface Call {
  readonly type: "CallExpression";
  readonly callee: Node;
  readonly args: readonly Node[];
}
export interface Member {
  readonly type: "MemberExpression";
  readonly object: Node;
  readonly property: Node;
  readonly computed: boolean;
}
export interface For {
  readonly type: "For";
  readonly loopvar: Node;
  readonly iterable: Node;
  readonly body: readonly Node[];
  readonly defaultBlock: readonly Node[];
}
export interface SetNode {
  readonly type: "Set";
  readonly assignee: Node;
  readonly value: Node | null;
  readonly body: readonly Node[];
}
export interface Macro {
  readonly type: "Macro";
  readonly name: Identifier;
  readonly args: readonly Node[];
  readonly body: readonly Node[];
}
export interface CallBlock {
  readonly type: "CallStatement";
  readonly call: Call;
  readonly callerArgs: readonly Node[] | null;
  readonly body: readonly Node[];
}
export interface Binary {
  readonly type: "BinaryExpression";
  readonly operator: { readonly value: string };
  readonly left: Node;
  readonly right: Node;
}
export interface Slice {
  readonly type: "SliceExpression";
  readonly start?: Node;
  readonly stop?: Node;
  readonly step?: Node;
}
export interface If {
  readonly type: "If";
  readonly test: Node;
  readonly body: readonly Node[];
  readonly alternate: readonly Node[];
}

export type Node =
  | Identifier
  | Call
  | Member
  | For
  | SetNode
  | Macro
  | CallBlock
  | Binary
  | Slice
  | If
  | { readonly type: "Program"; readonly body: readonly Node[] }
  | { readonly type: "Break" | "Continue" | "Comment" }
  | { readonly type: "IntegerLiteral" | "FloatLiteral"; readonly value: number }
  | { readonly type: "StringLiteral"; readonly value: string }
  | { readonly type: "ArrayLiteral" | "TupleLiteral"; readonly value: readonly Node[] }
  | { readonly type: "ObjectLiteral"; readonly value: ReadonlyMap<Node, Node> }
  | { readonly type: "FilterExpression"; readonly operand: Node; readonly filter: Identifier | Call }
  | { readonly type: "FilterStatement"; readonly filter: Identifier | Call; readonly body: readonly Node[] }
  | { readonly type: "SelectExpression"; readonly lhs: Node; readonly test: Node }
  | { readonly type: "TestExpression"; readonly operand: Node; readonly negate: boolean; readonly test: Identifier }
  | { readonly type: "UnaryExpression"; readonly operator: { readonly value: string }; readonly argument: Node }
  | { readonly type: "KeywordArgumentExpression"; readonly key: Identifier; readonly value: Node }
  | { readonly type: "SpreadExpression" | "KeywordSpreadExpression"; readonly argument: Node }
  | { readonly type: "Ternary"; readonly condition: Node; readonly trueExpr: Node; readonly falseExpr: Node };
