//! Device selectors: CEL over a device's driver, attributes and capacity.
//!
//! What the API server's environment has and the `cel` crate has not is made by rewriting the parsed
//! expression: an unknown domain is an empty map, `.?id` of a missing id is no value, and `cel.bind`.

use std::{collections::BTreeMap, sync::Arc};

use k8s_openapi::api::resource::v1::{Device, DeviceAttribute};
use kube_cel::{
    KubeCelExt,
    cel::{
        Context, IdedExpr, Value,
        common::ast::{
            CallExpr, ComprehensionExpr, EntryExpr, Expr, ListExpr, LiteralValue, MapExpr,
            operators,
        },
        extractors::This,
        objects::{Key, Map},
        parser::Parser,
    },
};

/// The fields of `device`, each a variable of this name once an expression is rewritten.
const FIELDS: [&str; 4] =
    ["device.driver", "device.attributes", "device.capacity", "device.allowMultipleAllocations"];

/// Expressions by their text, parsed once.
pub(super) struct Selectors<'a> {
    root: Context<'static>,
    parsed: BTreeMap<&'a str, Result<IdedExpr, String>>,
    quantity: IdedExpr,
    semver: IdedExpr,
}

impl<'a> Selectors<'a> {
    /// Parses each of `expressions`; one that is wrong is an error when it is first asked for.
    pub(super) fn new(expressions: impl Iterator<Item = &'a str>) -> Result<Self, String> {
        let mut root = Context::default().with_all();
        root.add_function("includes", includes);
        let mut parsed = BTreeMap::new();
        for text in expressions {
            parsed.entry(text).or_insert_with(|| parse(text));
        }
        let (quantity, semver) = (parse("quantity(text)")?, parse("semver(text)")?);
        Ok(Self { root, parsed, quantity, semver })
    }

    /// What expressions see of a device.
    pub(super) fn scope(&self, driver: &str, device: &Device) -> Result<Context<'_>, String> {
        let attributes = device.attributes.iter().flatten();
        let attributes = attributes
            .map(|(name, attribute)| Ok((name.as_str(), self.attribute(attribute)?)))
            .collect::<Result<_, String>>()?;
        let capacity = device.capacity.iter().flatten();
        let capacity = capacity
            .map(|(name, capacity)| {
                Ok((name.as_str(), self.parsed(&self.quantity, &capacity.value.0)?))
            })
            .collect::<Result<_, String>>()?;
        let shared = device.allow_multiple_allocations.unwrap_or(false);
        let values = [
            text(driver),
            by_domain(driver, attributes),
            by_domain(driver, capacity),
            Value::Bool(shared),
        ];

        let mut scope = self.root.new_inner_scope();
        for (field, value) in FIELDS.into_iter().zip(values) {
            scope.add_variable_from_value(field, value);
        }
        Ok(scope)
    }

    /// Whether the device of `scope` is what the expression asks for.
    pub(super) fn matches(&self, expression: &str, scope: &Context) -> Result<bool, String> {
        let parsed = self.parsed.get(expression).ok_or("was not there when the search began")?;
        let parsed = parsed.as_ref().map_err(|error| format!("CEL compile error: {error}"))?;
        match Value::resolve(parsed, scope) {
            Ok(Value::Bool(matches)) => Ok(matches),
            Ok(other) => Err(format!("CEL expression gives {}, not a bool", other.type_of())),
            Err(error) => Err(format!("CEL runtime error: {error}")),
        }
    }

    fn attribute(&self, attribute: &DeviceAttribute) -> Result<Value, String> {
        let list = |values: Vec<Value>| Ok(Value::List(Arc::new(values)));
        match attribute {
            DeviceAttribute { string: Some(value), .. } => Ok(text(value)),
            DeviceAttribute { int: Some(value), .. } => Ok(Value::Int(*value)),
            DeviceAttribute { bool: Some(value), .. } => Ok(Value::Bool(*value)),
            DeviceAttribute { version: Some(value), .. } => self.parsed(&self.semver, value),
            DeviceAttribute { strings: Some(values), .. } => {
                list(values.iter().map(|v| text(v)).collect())
            }
            DeviceAttribute { ints: Some(values), .. } => {
                list(values.iter().map(|&v| Value::Int(v)).collect())
            }
            DeviceAttribute { bools: Some(values), .. } => {
                list(values.iter().map(|&v| Value::Bool(v)).collect())
            }
            DeviceAttribute { versions: Some(values), .. } => list(
                values.iter().map(|v| self.parsed(&self.semver, v)).collect::<Result<_, _>>()?,
            ),
            _ => Err("an attribute has no value".to_owned()),
        }
    }

    /// A value of a type that only CEL functions make.
    fn parsed(&self, make: &IdedExpr, value: &str) -> Result<Value, String> {
        let mut scope = self.root.new_inner_scope();
        scope.add_variable_from_value("text", text(value));
        Value::resolve(make, &scope).map_err(|error| format!("`{value}`: {error}"))
    }
}

fn text(value: &str) -> Value {
    Value::String(Arc::new(value.to_owned()))
}

/// Domain to id to value. A name without a domain is of the driver's.
fn by_domain(driver: &str, values: Vec<(&str, Value)>) -> Value {
    let mut domains: BTreeMap<&str, Vec<(Key, Value)>> = BTreeMap::new();
    for (name, value) in values {
        let (domain, id) = name.split_once('/').unwrap_or((driver, name));
        domains.entry(domain).or_default().push((Key::from(id), value));
    }
    map(domains.into_iter().map(|(domain, values)| (Key::from(domain), map(values.into_iter()))))
}

fn map(entries: impl Iterator<Item = (Key, Value)>) -> Value {
    Value::Map(Map { map: Arc::new(entries.collect()) })
}

/// `x.includes(v)`: equal to `v`, or a list with it.
fn includes(This(this): This<Value>, value: Value) -> bool {
    match this {
        Value::List(values) => values.contains(&value),
        single => single == value,
    }
}

fn parse(text: &str) -> Result<IdedExpr, String> {
    let parser = Parser::default().enable_optional_syntax(true);
    let mut parsed = parser.parse(text).map_err(|errors| errors.to_string())?;
    rewrite(&mut parsed);
    Ok(parsed)
}

fn rewrite(expr: &mut IdedExpr) {
    children(&mut expr.expr).into_iter().for_each(rewrite);
    let old = std::mem::take(&mut expr.expr);
    expr.expr = match old {
        Expr::Select(select)
            if select.operand.expr == Expr::Ident("device".to_owned()) && !select.test =>
        {
            Expr::Ident(format!("device.{}", select.field))
        }
        Expr::Select(select) if is_domains(&select.operand) && !select.test => {
            let domain = Expr::Literal(LiteralValue::String(select.field.as_str().into()));
            or_empty(*select.operand, with_id(domain))
        }
        Expr::Call(mut call) => match (call.func_name.as_str(), call.args.as_mut_slice()) {
            (operators::INDEX, [map, domain]) if is_domains(map) => {
                or_empty(std::mem::take(map), std::mem::take(domain))
            }
            (operators::OPT_SELECT, _) => call_of(operators::OPT_INDEX, call.args),
            ("bind", [variable, init, body]) if is_cel(call.target.as_deref()) => {
                bind(std::mem::take(variable), std::mem::take(init), std::mem::take(body))
            }
            _ => Expr::Call(call),
        },
        other => other,
    };
}

fn children(expr: &mut Expr) -> Vec<&mut IdedExpr> {
    match expr {
        Expr::Call(call) => call.target.as_deref_mut().into_iter().chain(&mut call.args).collect(),
        Expr::Select(select) => vec![&mut *select.operand],
        Expr::List(list) => list.elements.iter_mut().collect(),
        Expr::Map(map) => {
            map.entries.iter_mut().flat_map(|entry| of_entry(&mut entry.expr)).collect()
        }
        Expr::Comprehension(all) => vec![
            &mut all.iter_range,
            &mut all.accu_init,
            &mut all.loop_cond,
            &mut all.loop_step,
            &mut all.result,
        ],
        Expr::Struct(of) => {
            of.entries.iter_mut().flat_map(|entry| of_entry(&mut entry.expr)).collect()
        }
        Expr::Unspecified | Expr::Ident(_) | Expr::Literal(_) => Vec::new(),
    }
}

fn of_entry(entry: &mut EntryExpr) -> Vec<&mut IdedExpr> {
    match entry {
        EntryExpr::MapEntry(entry) => vec![&mut entry.key, &mut entry.value],
        EntryExpr::StructField(field) => vec![&mut field.value],
    }
}

fn is_domains(expr: &IdedExpr) -> bool {
    matches!(&expr.expr, Expr::Ident(name) if name == FIELDS[1] || name == FIELDS[2])
}

fn is_cel(target: Option<&IdedExpr>) -> bool {
    target.is_some_and(|target| target.expr == Expr::Ident("cel".to_owned()))
}

/// `key in map ? map[key] : {}`
fn or_empty(map: IdedExpr, key: IdedExpr) -> Expr {
    let has = call_of(operators::IN, vec![key.clone(), map.clone()]);
    let get = call_of(operators::INDEX, vec![map, key]);
    let empty = Expr::Map(MapExpr::default());
    call_of(operators::CONDITIONAL, [has, get, empty].map(with_id).into())
}

/// `cel.bind(variable, init, body)`, as a comprehension over nothing whose result is the body.
fn bind(variable: IdedExpr, init: IdedExpr, body: IdedExpr) -> Expr {
    let Expr::Ident(name) = variable.expr else {
        return call_of("cel.bind", vec![variable, init, body]);
    };
    Expr::Comprehension(Box::new(ComprehensionExpr {
        iter_range: with_id(Expr::List(ListExpr::default())),
        iter_var: "#unused".to_owned(),
        iter_var2: None,
        accu_var: name.clone(),
        accu_init: init,
        loop_cond: with_id(Expr::Literal(LiteralValue::Boolean(false.into()))),
        loop_step: with_id(Expr::Ident(name)),
        result: body,
    }))
}

fn call_of(function: &str, args: Vec<IdedExpr>) -> Expr {
    Expr::Call(CallExpr { func_name: function.to_owned(), target: None, args })
}

fn with_id(expr: Expr) -> IdedExpr {
    IdedExpr { id: 0, expr }
}
