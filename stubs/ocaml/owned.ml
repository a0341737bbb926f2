(* What a unit declares itself: its types, constructors and modules, each by its path from the
   unit ("t", "M.t", "F().t" in a functor's body), and what a type expression says of them. *)

open Typedtree

type declared = { path : string; decl : Types.type_declaration; hint : string option }
type constructor = { name : string; ext : Types.extension_constructor; id : Ident.t }

type values = {
  ty : Types.type_expr;
  arity : int;  (* 0: not written as a function *)
  attributes : Parsetree.attributes;
  line : int;
}

type t = {
  unit_name : string;
  paths : (Ident.t, string) Hashtbl.t;
  decls : (Ident.t, Types.type_declaration) Hashtbl.t;
  by_path : (string, Types.type_declaration) Hashtbl.t;
  mutable types : (Ident.t * declared) list;  (* the last one first *)
  mutable constructors : constructor list;  (* the last one first *)
  aliases : (Ident.t, Path.t) Hashtbl.t;  (* module -> what it is *)
  functors : (Ident.t, Path.t) Hashtbl.t;  (* module -> who made it *)
  results : (Ident.t, Types.signature) Hashtbl.t;  (* of modules that functors made *)
  module_types : (Ident.t, Types.module_type) Hashtbl.t;
  values : (Ident.t, values) Hashtbl.t;
}

let create unit_name =
  {
    unit_name; paths = Hashtbl.create 97; decls = Hashtbl.create 97;
    by_path = Hashtbl.create 97; types = []; constructors = []; aliases = Hashtbl.create 7;
    functors = Hashtbl.create 7; results = Hashtbl.create 7; module_types = Hashtbl.create 7;
    values = Hashtbl.create 97;
  }

let line_of (loc : Location.t) = loc.loc_start.pos_lnum

(* A second declaration of one name hides the first, whose values may still be about. *)
let fresh owned path =
  let rec go n =
    let name = if n = 1 then path else Printf.sprintf "%s#%d" path n in
    if Hashtbl.mem owned.by_path name then go (n + 1) else name
  in
  go 1

let declare_type ?hint owned prefix id decl =
  let path = fresh owned (prefix ^ Ident.name id) in
  Hashtbl.replace owned.paths id path;
  Hashtbl.replace owned.decls id decl;
  Hashtbl.replace owned.by_path path decl;
  owned.types <- (id, { path; decl; hint }) :: owned.types

let declare_constructor owned prefix id ext =
  owned.constructors <- { name = prefix ^ Ident.name id; ext; id } :: owned.constructors

(* ---- Paths. *)

let rec inner m =
  match m.mod_desc with Tmod_constraint (e, _, _, _) -> inner e | _ -> m

let structure_of m =
  match (inner m).mod_desc with Tmod_structure s -> Some s | _ -> None

(* An alias of a module is the module itself. *)
let rec real owned = function
  | Path.Pident id as path -> (
      match Hashtbl.find_opt owned.aliases id with
      | Some target -> real owned target
      | None -> path)
  | Path.Pdot (head, name) -> Path.Pdot (real owned head, name)
  | path -> path

(* The path of something that the unit declares. *)
let rec own owned = function
  | Path.Pident id -> Hashtbl.find_opt owned.paths id
  | Path.Pdot (head, name) ->
      Option.map (fun prefix -> prefix ^ "." ^ name) (own owned (real owned head))
  | Path.Papply (f, _) -> Option.map (fun path -> path ^ "()") (own owned f)
  | _ -> None

(* `Stdlib__Hashtbl.t` and `Stdlib.Hashtbl.t` are one type. *)
let normal name =
  let prefix = "Stdlib__" in
  let n = String.length prefix in
  if String.length name > n && String.sub name 0 n = prefix then
    "Stdlib." ^ String.sub name n (String.length name - n)
  else name

let is_persistent path =
  match Path.head path with id -> Ident.persistent id | exception _ -> false

let is_foreign path =
  is_persistent path || (match path with Path.Pident id -> Ident.is_predef id | _ -> false)

(* ---- The walk over a structure. *)

let rec walk owned prefix s =
  of_signature owned prefix s.str_type;
  List.iter (fun item -> walk_item owned prefix item) s.str_items;
  declare_signature owned prefix s.str_type

and of_signature owned prefix items =
  List.iter
    (function
      | Types.Sig_value (id, d, _) when not (Hashtbl.mem owned.values id) ->
          let value =
            { ty = d.val_type; arity = 0; attributes = d.val_attributes;
              line = line_of d.val_loc }
          in
          Hashtbl.replace owned.values id value
      | Types.Sig_module (id, _, _, _, _) when not (Hashtbl.mem owned.paths id) ->
          Hashtbl.replace owned.paths id (prefix ^ Ident.name id)
      | _ -> ())
    items

(* Types and constructors that a signature alone tells of: a class, an include, a functor's
   result. *)
and declare_signature ?hint owned prefix items =
  List.iter
    (function
      | Types.Sig_type (id, decl, _, _) when not (Hashtbl.mem owned.decls id) ->
          let hint = Option.map (fun made -> made ^ "." ^ Ident.name id) hint in
          declare_type ?hint owned prefix id decl
      | Types.Sig_typext (id, ext, _, _)
        when not (List.exists (fun c -> Ident.same c.id id) owned.constructors) ->
          declare_constructor owned prefix id ext
      | _ -> ())
    items

and walk_item owned prefix item =
  match item.str_desc with
  | Tstr_value (_, bindings) -> List.iter (walk_binding owned) bindings
  | Tstr_type (_, declarations) ->
      List.iter (fun d -> declare_type owned prefix d.typ_id d.typ_type) declarations
  | Tstr_typext e ->
      List.iter (fun c -> declare_constructor owned prefix c.ext_id c.ext_type)
        e.tyext_constructors
  | Tstr_exception e ->
      let c = e.tyexn_constructor in
      declare_constructor owned prefix c.ext_id c.ext_type
  | Tstr_module m -> walk_module owned prefix item.str_env m
  | Tstr_recmodule ms -> List.iter (walk_module owned prefix item.str_env) ms
  | Tstr_open { open_expr; open_bound_items; _ } ->
      of_signature owned prefix open_bound_items;
      Option.iter (walk owned prefix) (structure_of open_expr)
  | Tstr_include { incl_mod; incl_type; _ } ->
      of_signature owned prefix incl_type;
      Option.iter (walk owned prefix) (structure_of incl_mod)
  | _ -> ()

and walk_binding owned binding =
  let names = Compat.bound_names binding.vb_pat in
  let arity = match names with [ _ ] -> Compat.arity binding.vb_expr | _ -> 0 in
  List.iter
    (fun (id, ty) ->
      let line = line_of binding.vb_pat.pat_loc in
      Hashtbl.replace owned.values id
        { ty; arity; attributes = binding.vb_attributes; line })
    names

and walk_module owned prefix env m =
  let name = match m.mb_id with Some id -> Ident.name id | None -> "_" in
  let note table value =
    Option.iter (fun id -> Hashtbl.replace table id value) m.mb_id
  in
  note owned.paths (prefix ^ name);
  note owned.module_types m.mb_expr.mod_type;
  let rec body path e =
    match (inner e).mod_desc with
    | Tmod_structure s -> walk owned (path ^ ".") s
    | Tmod_functor (_, e) -> body (path ^ "()") e
    | Tmod_ident (target, _) -> note owned.aliases target
    | d when Compat.is_applied d ->
        Option.iter (note owned.functors) (Compat.applied d);
        let made = Option.bind (Compat.applied d) (own owned) in
        let hint = Option.map (fun f -> f ^ "()") made in
        Option.iter
          (fun items ->
            note owned.results items;
            declare_signature ?hint owned (path ^ ".") items)
          (signature_of env e.mod_type)
    | _ -> ()
  in
  body (prefix ^ name) m.mb_expr;
  name_types owned (prefix ^ name ^ ".") m.mb_expr.mod_type

(* A signature speaks of a module's types by idents of its own. *)
and name_types owned prefix = function
  | Types.Mty_signature items -> name_items owned prefix items
  | _ -> ()

and name_items owned prefix items =
  let name id =
    if not (Hashtbl.mem owned.paths id) then
      Hashtbl.replace owned.paths id (prefix ^ Ident.name id)
  in
  List.iter
    (function
      | Types.Sig_type (id, _, _, _) -> name id
      | Sig_module (id, _, { md_type; _ }, _, _) ->
          name id;
          name_types owned (prefix ^ Ident.name id ^ ".") md_type
      | _ -> ())
    items

(* A named module type is looked up where it is used. *)
and signature_of env = function
  | Types.Mty_signature items -> Some items
  | ty -> (
      match Mtype.scrape (Envaux.env_of_only_summary env) ty with
      | Types.Mty_signature items -> Some items
      | _ | (exception _) -> None)
