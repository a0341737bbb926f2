(* One unit, from its .cmi, .cmt and .cmx: names, checksums, fields and declarations. *)

open Json

(* ---- Text of types; one line each, the same in every run. *)

let buffer = Buffer.create 1024
let formatter = Format.formatter_of_buffer buffer

let printed print value =
  Buffer.clear buffer;
  Format.pp_set_margin formatter 1_000_000;
  (* this also forgets the names given so far, among which a second `t` would be `t/2` *)
  Printtyp.wrap_printing_env ~error:true Env.empty (fun () -> print formatter value);
  Format.pp_print_flush formatter ();
  Buffer.contents buffer

let type_text ty = printed Printtyp.type_expr ty

(* In a signature a class stands with its types, and is not printed without. *)
let item_text = function
  | Types.Sig_class (id, d, _, _) -> printed (Printtyp.class_declaration id) d
  | Sig_class_type (id, d, _, _) -> printed (Printtyp.cltype_declaration id) d
  | item -> printed Printtyp.signature [ item ]

(* ---- Fields. *)

let policy attributes =
  let wants (a : Parsetree.attribute) =
    match a.attr_name.txt with
    | "reload.keep" -> Some "keep"
    | "reload.reset" -> Some "reset"
    | _ -> None
  in
  List.find_map wants attributes

let value_of owned (s : Slots.slot) =
  match (Hashtbl.find_opt owned.Owned.values s.id, s.ty) with
  | None, Some ty -> Some { Owned.ty; arity = 0; attributes = []; line = 0 }
  | found, _ -> found

let module_kind owned (s : Slots.slot) =
  if Hashtbl.mem owned.Owned.functors s.id || Hashtbl.mem owned.results s.id then "functor result"
  else "module"

(* What the interface says of a module, class or constructor, and the types that it is made of.
   Of a hidden one nobody but the unit itself knows. *)
let by_interface owned (s : Slots.slot) =
  match s.item with
  | None -> ("", [])
  | Some item ->
      let own = if s.namespace = Module then Kinds.module_mentions owned s.id else [] in
      let mentions = List.sort_uniq compare (own @ Kinds.item_mentions owned item) in
      (item_text item, mentions)

(* kind, type, arity, policy, line, mentions *)
let facts owned (s : Slots.slot) =
  let named kind =
    let text, mentions = by_interface owned s in
    (kind, text, 0, None, 0, mentions)
  in
  match s.namespace with
  | Module -> named (module_kind owned s)
  | Class -> named "class"
  | Constructor -> named "constructor"
  | Value -> (
      match value_of owned s with
      | None -> ("other", "", 0, None, 0, [])
      | Some v ->
          let kind = Kinds.of_type owned v.ty in
          let arity = if kind = "function" then v.arity else 0 in
          (kind, type_text v.ty, arity, policy v.attributes, v.line, Kinds.mentions owned v.ty))

let slot (s : Slots.slot) (kind, ty, arity, policy, line, mentions) =
  Object
    [
      ("path", String (String.concat "." s.path));
      ("chain", List (List.map (fun i -> Int i) s.chain));
      ("exported", Bool s.exported); ("kind", String kind); ("type", String ty);
      ("arity", Int arity); ("policy", optional (fun p -> String p) policy); ("line", Int line);
      ("mentions", strings mentions);
    ]

(* ---- Declarations. *)

let declared owned (id, (d : Owned.declared)) =
  let hints =
    match d.hint with
    | Some h -> [ Kinds.dotted owned.Owned.unit_name ^ "." ^ h ]
    | None -> []
  in
  Object
    [
      ("path", String d.path); ("text", String (printed (Printtyp.type_declaration id) d.decl));
      ("mentions", strings (hints @ Kinds.declaration_mentions owned d.decl));
      ( "abstract",
        Bool (Compat.is_abstract d.decl.type_kind && Option.is_none d.decl.type_manifest) );
    ]

let constructor owned (c : Owned.constructor) =
  Object
    [
      ("path", String c.name);
      ("text", String (printed (Printtyp.extension_constructor c.id) c.ext));
      ("mentions", strings (Kinds.constructor_mentions owned c.ext)); ("abstract", Bool false);
    ]

let interface items =
  let name = function
    | Types.Sig_value (id, _, _) -> "val " ^ Ident.name id
    | Sig_type (id, _, _, _) -> "type " ^ Ident.name id
    | Sig_typext (id, _, _, _) -> "constructor " ^ Ident.name id
    | Sig_module (id, _, _, _, _) -> "module " ^ Ident.name id
    | Sig_modtype (id, _, _) -> "module type " ^ Ident.name id
    | Sig_class (id, _, _, _) -> "class " ^ Ident.name id
    | Sig_class_type (id, _, _, _) -> "class type " ^ Ident.name id
  in
  List (List.map (fun i -> strings [ name i; item_text i ]) items)

(* ---- Files. *)

let hex = Digest.to_hex
let optional_digest = optional (fun digest -> String (hex digest))
let crcs list = Object (List.map (fun (name, crc) -> (name, optional_digest crc)) list)

exception Wrong_file of string * string  (* kind, text *)

(* The .cmx's facts, or those of one unit in a .cmxa; and its checksum. *)
let read_cmx file name =
  let ic = open_in_bin file in
  Fun.protect
    ~finally:(fun () -> close_in ic)
    (fun () ->
      let magic = really_input_string ic (String.length Config.cmx_magic_number) in
      if magic = Config.cmx_magic_number then
        let infos : Cmx_format.unit_infos = input_value ic in
        (infos, Digest.input ic)
      else if magic = Config.cmxa_magic_number then
        let library : Cmx_format.library_infos = input_value ic in
        match
          List.find_opt (fun (u, _) -> u.Cmx_format.ui_name = name) library.lib_units
        with
        | Some found -> found
        | None -> raise (Wrong_file ("no-unit", file ^ " has no unit " ^ name))
      else
        let text =
          Printf.sprintf "%s has magic number %S, this compiler (%s) writes %S" file magic
            Sys.ocaml_version Config.cmx_magic_number
        in
        raise (Wrong_file ("version", text)))

let implementation file name =
  if file = "" then [ ("implementation", Null) ]
  else
    let infos, crc = read_cmx file name in
    let own (other, _) = other <> name in
    [
      ( "implementation",
        Object
          [
            ("crc", String (hex crc)); ("symbol", String infos.Cmx_format.ui_symbol);
            ("interfaces", crcs (List.filter own infos.ui_imports_cmi));
            ("imports", crcs (List.filter own infos.ui_imports_cmx));
          ] );
    ]

(* Where the compiler ran. A build may have written down a made-up folder (dune's
   /workspace_root); then it is the given one. *)
let build_folder folder = function
  | Some { Cmt_format.cmt_builddir; _ } when Sys.file_exists cmt_builddir -> cmt_builddir
  | _ -> folder

let absolute folder path = if Filename.is_relative path then Filename.concat folder path else path

(* Load paths are those of the compiler's command line, relative to where it ran. *)
let set_load_path folder (cmt : Cmt_format.cmt_infos option) cmi =
  let given = match cmt with Some cmt -> Compat.load_path cmt | None -> [] in
  let folders = List.map (absolute (build_folder folder cmt)) given in
  Compat.init_load_path (folders @ [ Filename.dirname cmi; Config.standard_library ])

let structure_of (cmt : Cmt_format.cmt_infos) =
  match cmt.cmt_annots with
  | Implementation s -> s
  | Packed _ -> raise (Wrong_file ("packed", cmt.cmt_modname ^ " is a pack of units (-pack)"))
  | _ -> raise (Wrong_file ("not-an-implementation", cmt.cmt_modname ^ " has no implementation"))

let contents name items structure =
  let owned = Owned.create name in
  let slots =
    match structure with
    | Some s ->
        Owned.walk owned "" s;
        Owned.name_items owned "" items;
        Slots.of_unit items s
    | None ->
        Owned.of_signature owned "" items;
        Owned.declare_signature owned "" items;
        Slots.of_interface items
  in
  let own = List.map (fun s -> slot s (facts owned s)) slots in
  (* of what a functor made only the state counts *)
  let state s =
    match facts owned s with
    | ("function" | "other" | "module" | "functor result"), _, _, _, _, _ -> None
    | found -> Some (slot s found)
  in
  let nested = List.filter_map state (List.concat_map (Slots.of_result owned) slots) in
  [
    ("field_count", Int (List.length slots)); ("slots", List (own @ nested));
    ("types", List (List.rev_map (declared owned) owned.types));
    ("constructors", List (List.rev_map (constructor owned) owned.constructors));
  ]

let describe ~folder ~cmi ~cmt ~cmx =
  Env.reset_cache ();
  Envaux.reset_cache ();
  let infos = Cmi_format.read_cmi cmi in
  let cmt = if cmt = "" then None else Some (Cmt_format.read_cmt cmt) in
  set_load_path folder cmt cmi;
  let name = infos.cmi_name in
  let own, imports = List.partition (fun (other, _) -> other = name) infos.cmi_crcs in
  let digest = match own with (_, Some crc) :: _ -> String (hex crc) | _ -> Null in
  let imports = match cmt with Some c -> c.cmt_imports | None -> imports in
  let source = Option.bind cmt (fun c -> c.cmt_sourcefile) in
  Object
    ([
       ("name", String name); ("interface_crc", digest);
       ("imports", crcs (List.filter (fun (other, _) -> other <> name) imports));
       ("opaque", Bool (List.mem Cmi_format.Opaque infos.cmi_flags));
       ("complete", Bool (Option.is_some cmt)); ("source", optional (fun s -> String s) source);
       ("interface", interface infos.cmi_sign);
     ]
    @ implementation cmx name
    @ contents name infos.cmi_sign (Option.map structure_of cmt))
